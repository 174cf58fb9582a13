"""A sweep sees each epoch of a trial, and may end it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import lightning as L

from objrec.training.logged_metrics import was_validated

# (epoch from 0, metrics such as val/acc); raises to end the training
EpochListener = Callable[[int, Mapping[str, float]], None]
_listener: ContextVar[EpochListener | None] = ContextVar("listener", default=None)


@contextmanager
def report_epochs_to(listener: EpochListener | None) -> Iterator[None]:
    """Let ``listener`` see every epoch that is trained inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
    """Show an epoch's metrics to the listener, if there is one. Raises what the listener raises."""
    if (listener := _listener.get()) is not None:
        listener(epoch, metrics)


class TrialReport(L.Callback):
    """Report the metrics of each validated epoch to the listener of this training."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if was_validated(trainer):
            metrics = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))}
            report_epoch(trainer.current_epoch, metrics)
