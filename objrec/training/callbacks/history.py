"""The metrics of all epochs, as a table and as curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import lightning as L

from objrec.system.files import write_atomically
from objrec.training.logged_metrics import was_validated


class History(L.Callback):
    """Keep ``metrics.csv``, a row an epoch, and draw ``curves.png`` at the end.

    The file is rewritten whole at every epoch, so a resumed run continues it.
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
