"""An interrupted training is carried on: what its checkpoints belong to, and when they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

OWN = ("settings.sha256", "found.json", ".found.json", "mlflow_run")
CURVES = ("metrics.csv", "per_class.csv", "curves.png", "batch.png", "lr_finder.png")
TERMINATED = 143  # exit status after SIGTERM, as a shell counts it


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one training's checkpoints."""

    folder: Path

    @property
    def last(self) -> Path:
        """Where an interrupted training carries on."""
        return self.folder / "last.ckpt"

    @property
    def found(self) -> dict[str, Any]:
        """What was measured before the first step, such as the batch size: a resumed run does not measure again."""
        path = self.folder / "found.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def remember(self, found: dict[str, Any]) -> None:
        beside = self.folder / ".found.json"
        beside.write_text(json.dumps(found))
        beside.replace(self.folder / "found.json")

    def remove(self) -> None:
        """Remove the folder; what is not a training's own stays."""
        for path in self.folder.iterdir():
            if path.is_file() and (".ckpt" in path.suffixes or path.name in OWN):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def open_checkpoints(training_dir: Path, identity: Any, resume: Literal["auto", "never"]) -> Checkpoints:
    """Return the checkpoint folder, emptied when what it holds is of other settings or other data, or not wanted."""
    folder = training_dir / "checkpoints"
    mark = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    owner = folder / "settings.sha256"
    if folder.exists() and (resume == "never" or not (owner.is_file() and owner.read_text() == mark)):
        _clear(training_dir)
    folder.mkdir(parents=True, exist_ok=True)
    owner.write_text(mark)
    return Checkpoints(folder)


def _clear(training_dir: Path) -> None:
    """Remove what a training of other settings left; a file that someone else put there stays."""
    Checkpoints(training_dir / "checkpoints").remove()
    for name in CURVES:
        (training_dir / name).unlink(missing_ok=True)
    shutil.rmtree(training_dir / "logs", ignore_errors=True)


class MidEpoch(L.Callback):
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
