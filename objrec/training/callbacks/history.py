"""Beside training: a history with curves, checkpoints that a kill cannot break."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from objrec.config.errors import UserError, did_you_mean
from objrec.system.files import atomic_file, write_atomically


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


def was_validated(trainer: L.Trainer) -> bool:
    """Whether the epoch that ends is one of those that are validated: the metrics are of an earlier one otherwise."""
    every: int = trainer.check_val_every_n_epoch or 1
    done: int = trainer.current_epoch + 1
    return done % every == 0


def not_logged(key: str, metric: str | None, logged: Iterable[str]) -> str:
    """Say that a metric which a setting names never came."""
    names = sorted(m for m in logged if not m.endswith(("_step", "_epoch")))
    return f"{key}: '{metric}' was not logged; logged: {', '.join(names)}.{did_you_mean(str(metric), names)}"


class History(L.Callback):
    """Keep ``metrics.csv``, a row an epoch, and draw ``curves.png`` at the end.

    The file is rewritten whole at every epoch, so that a resumed run carries on in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, float]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # the epoch is restored by now
        self.rows = [row for row in self.rows if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val/"))}
        if not was_validated(trainer):
            return
        rates = {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row = {"epoch": float(trainer.current_epoch), **rates, **logged}
        self.rows.append({k: round(v, 6) for k, v in row.items()})
        if trainer.is_global_zero:
            self._write()
            self._write_classes(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.rows:
            draw_curves(self.rows, self.folder / "curves.png")

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())

    def _write_classes(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = trainer.datamodule.class_names
        with (self.folder / "per_class.csv").open("w", newline="") as file:  # of the last validation
            csv.writer(file).writerows(
                [
                    ("class", "val/acc"),
                    *((n, round(a, 6)) for n, a in zip(names, pl_module.class_accuracy, strict=True)),
                ]
            )


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracy over epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        for part, style in (("train", "--"), ("val", "-")):
            points = [(row["epoch"] + 1, row[f"{part}/{quantity}"]) for row in rows if f"{part}/{quantity}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=part, marker="o", markersize=3)
        axes.set(xlabel="epoch", title={"loss": "loss", "acc": "accuracy"}[quantity])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
