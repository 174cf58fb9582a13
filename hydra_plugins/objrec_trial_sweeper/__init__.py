"""Hydra's plugin for ``objrec.train -m``. Hydra imports it at every start, so nothing heavy is imported here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TrialSweeper(Sweeper):
    """Run the trials of a sweep and exit: 0, or 1 where some failed.

    Args:
        params: what the sweep's file varies; the command line wins over it.
        max_batch_size: of Hydra's own sweeper, unused.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, max_batch_size: int | None = None) -> None:
        self.params = dict(params or {})
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        from objrec.config.cli import guard
        from objrec.sweeps.sweeper import run_sweep

        assert self.config is not None
        hydra = self.config.hydra
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running trials are ended too
        sys.exit(guard(lambda: run_sweep(self.params, arguments, hydra, self._launcher)))

    def _launcher(self) -> Any:
        from hydra.core.plugins import Plugins

        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context,  # type: ignore[arg-type]
            task_function=self.task_function,  # type: ignore[arg-type]
            config=self.config,  # type: ignore[arg-type]
        )
