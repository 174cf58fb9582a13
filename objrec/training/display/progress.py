"""Progress of a training: a bar on a terminal, lines elsewhere, numbers for the pipeline's display."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from objrec.system.progress import report
from objrec.training.logged_metrics import was_validated

REFRESH = 0.2  # seconds between two looks; reading the loss from a GPU oftener would hold it up


class TrainingProgress(L.Callback):
    """Measure speed and time left, and show them with loss and validation accuracy.

    Args:
        on_terminal: draw a bar that moves; False: only print a line for each epoch.
    """

    def __init__(self, *, on_terminal: bool) -> None:
        self.on_terminal = on_terminal
        self._bar: Any = None
        self._loss: torch.Tensor | None = None
        self._images = 0  # of this epoch
        self._steps = 0  # of this process: an interrupted one may have done some before
        self._todo = 0  # steps
        self._began = self._epoch_began = self._looked = 0.0
        self._training = 0.0  # seconds of this epoch without validation

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._epoch_began = time.monotonic()  # a resumed one may begin within an epoch
        self._steps = self._images = 0
        if self.on_terminal and trainer.is_global_zero:
            self._bar = _bar()
            self._bar.start()
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._task = self._bar.add_task("", total=int(trainer.num_training_batches), epoch=epoch, text="")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_began = time.monotonic()
        self._images, self._training = 0, 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._steps += 1
        self._images += len(batch[0]) * trainer.world_size
        self._training = now - self._epoch_began
        self._loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if now - self._looked >= REFRESH or batch_idx + 1 == trainer.num_training_batches:
            self._looked = now
            self._show(trainer, batch_idx + 1)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *unused: Any) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._looked >= REFRESH:
            self._looked = now
            self._bar.update(self._task, text="validating")
            self._bar.refresh()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            line = self._epoch_line(trainer)
            if self._bar is not None:
                self._bar.console.print(line, highlight=False)
                self._bar.refresh()
            else:
                print(line, flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: L.Trainer, batch: int) -> None:
        batches = int(trainer.num_training_batches)
        planned, done = batches * (trainer.max_epochs or 1), batches * trainer.current_epoch + batch
        self._todo = planned - done
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        value = trainer.callback_metrics.get("val/acc")
        accuracy = "" if value is None else f", val/acc {value:.3f}"
        report(done, planned, f"steps, {epoch}, {self._speed():.0f} images/s{accuracy}, {self._left()}")
        if self._bar is not None:
            loss = "" if self._loss is None else f"loss {self._loss.item():.3f}, "
            text = f"{self._speed():.0f} images/s, {loss}{accuracy.removeprefix(', ') or 'val/acc -'}, {self._left()}"
            self._bar.update(self._task, completed=batch, total=batches, epoch=epoch, text=text)
            self._bar.refresh()

    def _epoch_line(self, trainer: L.Trainer) -> str:
        known = trainer.callback_metrics if was_validated(trainer) else {}
        shown = sorted(k for k in known if k.startswith(("train/", "val/")))
        metrics = ", ".join(f"{k} {known[k]:.4f}" for k in shown) or "not validated"
        seconds = time.monotonic() - self._epoch_began
        speed = f"{seconds:.1f} s, {self._speed():.0f} images/s"
        last = trainer.current_epoch + 1 == trainer.max_epochs
        left = "" if last else f", {self._left()}"
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {metrics}, {speed}{left}"

    def _speed(self) -> float:
        """Return training images a second in this epoch."""
        return self._images / max(self._training, 1e-9)

    def _left(self) -> str:
        """Return the time that is left at the pace of this process so far, validation included."""
        return f"{duration(self._todo * (time.monotonic() - self._began) / max(1, self._steps))} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Return ``42 s``, ``3:07 min`` or ``2:05 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("[bold]{task.fields[epoch]}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        auto_refresh=False,  # no second thread beside the training
        transient=True,  # the lines of the epochs stay
    )
