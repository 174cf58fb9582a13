"""One trial of a sweep: a training that leaves a result, whatever becomes of it."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.runner.train import train
from objrec.sweeps.trial import Pruned, TrialResult


def run_trial(config: Config | UserError, overrides: Sequence[str], folder: Path) -> TrialResult:
    """Train in a sweep's trial folder and leave ``result.json`` there, whatever happens but a kill or Ctrl-C."""
    from objrec.training.callbacks.trial_report import report_epochs_to

    began = time.monotonic()
    try:
        if isinstance(config, UserError):
            raise config
        with report_epochs_to(_listener(config, folder)):
            card = train(config, overrides=overrides, run_dir=folder)
        result = TrialResult(status="finished", metrics=card.metrics, seconds=_since(began))
    except Pruned as told:
        print(told)
        shutil.rmtree(folder / "model" / "training" / "checkpoints", ignore_errors=True)
        metrics = {"epoch": float(told.epoch), **told.metrics}
        result = TrialResult(status="pruned", metrics=metrics, seconds=_since(began), reason=str(told))
    except UserError as error:
        for message in error.messages:
            print(f"error: {message}", file=sys.stderr)
        result = TrialResult(status="failed", seconds=_since(began), reason=error.messages[0])
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        result = TrialResult(status="failed", seconds=_since(began), reason=reason)
    result.save(folder)
    return result


def _listener(config: Config, folder: Path) -> Any:
    """Return what sees the trial's epochs: the study, in a sweep that stops trials early."""
    if config.sweep.algorithm == "grid" or config.sweep.early_termination == "none":
        return None
    from objrec.sweeps.sampling import StudyListener

    return StudyListener(folder.parent, int(folder.name), config.sweep)


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
