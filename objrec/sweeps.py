"""What is said at the end of a sweep. Imports nothing heavy: Hydra loads it for every command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class Leaderboard(Callback):
    """After ``-m``: ``leaderboard.csv`` in the sweep's folder, best first, and a table on the terminal."""

    failed = 0  # jobs of the last sweep that left no model

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = leaderboard(folder)
        if not rows:
            return
        Leaderboard.failed = sum(row["val/acc"] is None for row in rows)
        with (folder / "leaderboard.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["job", "val/acc", "epoch", "overrides", "model"])
            writer.writeheader()
            writer.writerows(rows)
        show(rows, folder)


def leaderboard(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each job of a sweep, best validation accuracy first; failed jobs come last without one."""
    import yaml

    rows = []
    for overrides in folder.glob("*/.hydra/overrides.yaml"):
        job = overrides.parents[1]
        card = job / "model" / "model.json"
        metrics = json.loads(card.read_text())["metrics"] if card.is_file() else {}
        rows.append(
            {
                "job": job.name,
                "val/acc": metrics.get("val/acc"),
                "epoch": metrics.get("epoch"),
                "overrides": " ".join(yaml.safe_load(overrides.read_text())),
                "model": str(card.parent) if metrics else None,
            }
        )
    return sorted(rows, key=lambda r: (r["val/acc"] is None, -(r["val/acc"] or 0.0), r["job"]))


def show(rows: list[dict[str, Any]], folder: Path) -> None:
    """Print the table and the line that repeats the best job."""
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "val/acc", "overrides")
    for row in rows:
        table.add_row(row["job"], "failed" if row["val/acc"] is None else f"{row['val/acc']:.4f}", row["overrides"])
    console = Console()
    console.print(table)
    if rows[0]["val/acc"] is not None:
        console.print(f"best: python -m objrec.train {rows[0]['overrides']}", highlight=False, soft_wrap=True)
    console.print(f"table: {folder / 'leaderboard.csv'}", highlight=False, soft_wrap=True)
