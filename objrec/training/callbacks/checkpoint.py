"""Checkpoints that a kill cannot damage, written within epochs too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from objrec.config.errors import UserError
from objrec.system.files import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically.

    Lightning's own writer passes through TMPDIR; where that is another file system, a kill leaves half a file under
    the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        final = Path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_file(final) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer says what the disk says in its own way
            reason = error.strerror if isinstance(error, OSError) else str(error).strip().split("\n")[0]
            raise UserError(
                f"{final}: the checkpoint cannot be written: {reason}. Earlier ones are as they were: with space on "
                "the disk, the same command resumes"
            ) from error


class NamedCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint whose state has its name, so that two may have the same settings."""

    name = ""

    @property
    def state_key(self) -> str:
        return f"{super().state_key} {self.name}"

    @classmethod
    def of(cls, callback: ModelCheckpoint, name: str) -> ModelCheckpoint:
        """Name a callback that was made as the configuration says; one of a class of the user's is left alone."""
        if type(callback) is ModelCheckpoint:
            callback.__class__, callback.name = cls, name
        return callback


class MidEpochCheckpoint(L.Callback):
    """Write the last checkpoint within an epoch too: every some minutes, and on SIGTERM.

    With several processes the first writes; the sums behind the epoch's training metrics are then its own share.

    Args:
        minutes: between two; None: on SIGTERM only.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self.path = path
        self.minutes = minutes
        self._written = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._written = time.monotonic()  # the end of the epoch before has just been written

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *unused: Any) -> None:
        due = self.minutes is not None and time.monotonic() - self._written > 60 * self.minutes
        if due and trainer.is_global_zero and not _at_end(trainer):
            self._write(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and trainer.is_global_zero and not _at_end(trainer):
            self._write(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["folder"] = os.path.realpath(self.path.parent)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let checkpoint callbacks find their files where the folder is now: a run folder may have been moved."""
        checkpoint["callbacks"] = _moved(
            checkpoint["callbacks"], checkpoint["folder"], os.path.realpath(self.path.parent)
        )

    def _write(self, trainer: L.Trainer) -> None:
        # not trainer.save_checkpoint, which waits for the other processes
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        trainer.strategy.save_checkpoint(state, self.path)
        self._written = time.monotonic()


def _at_end(trainer: L.Trainer) -> bool:
    """Whether the epoch's last batch is done: then its own checkpoint is about to come, or has come."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    # within an accumulation the gradients so far are in no checkpoint
    return done in (0, trainer.num_training_batches) or done % trainer.accumulate_grad_batches != 0


def _moved(state: Any, old: str, new: str) -> Any:
    if isinstance(state, dict):
        return {_moved(k, old, new): _moved(v, old, new) for k, v in state.items()}
    if isinstance(state, str) and (state == old or state.startswith(f"{old}/")):
        return new + state[len(old) :]
    return state
