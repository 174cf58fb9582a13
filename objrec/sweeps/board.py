"""What is shown of a sweep: trials as they go, and at the end a table, an image and the line that repeats the best."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from objrec.config.load import dump, load_config
from objrec.config.schema import Config
from objrec.config.search_space import effective
from objrec.runner.display import Display
from objrec.sweeps.trial import Trial, TrialResult, stored_trials

SHOWN = 15  # rows of the table on the terminal; the file has all

Row = dict[str, Any]


class TrialDisplay(Display):
    """Running trials on a terminal, a line for each that begins or ends elsewhere."""

    def __init__(self, log: IO[str], metric: str) -> None:
        super().__init__(log)
        self._metric = metric
        self._best: float | None = None

    def ended(self, trial: Trial, result: TrialResult) -> None:
        """Tell what became of a trial."""
        value = result.metrics.get(self._metric)
        text = f"{trial.name}: {result.status}" + (f" ({result.reason})" if result.reason else "")
        if value is not None:
            text += f", {self._metric} {value:.4f}"
            if result.status == "finished" and (self._best is None or better(self._metric, value, self._best)):
                text += ", the best so far"
                self._best = value
        task = self._tasks.pop(trial.name, None)
        if self._live is not None and task is not None:
            self._live.remove_task(task)
        self.note(f"{text}, {result.seconds:.1f} s ({' '.join(trial.words)})")


def better(metric: str, value: float, than: float) -> bool:
    """Whether a value of a metric is better than another: accuracies high, losses low."""
    return value > than if metric.endswith("acc") else value < than


def leaderboard(folder: Path, metric: str, identity: str) -> list[Row]:
    """Return a row for each trial of these settings: best first, then those stopped early, then those that failed."""
    rows: list[Row] = []
    for number, stored in stored_trials(folder).items():
        if stored["identity"] != identity:
            continue
        place = folder / str(number)
        result = TrialResult.load(place) or TrialResult(status="failed", reason="has not ended")
        model = place / "model"
        rows.append(
            {
                "job": number,
                metric: result.metrics.get(metric),
                "status": result.status,
                "epoch": int(result.metrics["epoch"]) + 1 if "epoch" in result.metrics else None,
                "seconds": result.seconds,
                **stored["values"],
                "model": str(model) if result.status == "finished" else None,
                "reason": result.reason,
            }
        )
    order = ("finished", "pruned", "failed")
    sign = -1 if metric.endswith("acc") else 1
    return sorted(rows, key=lambda r: (order.index(r["status"]), sign * (r[metric] or 0.0), r["job"]))


def finish(folder: Path, config: Config, keys: Sequence[str], fixed: Sequence[str], identity: str) -> int:
    """Write ``leaderboard.csv``, ``sweep.png`` and ``best.txt``, print what is in them; returns the exit status."""
    metric = config.sweep.metric
    rows = leaderboard(folder, metric, identity)
    if not rows:
        return 0
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "leaderboard.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    _show(rows, metric, keys)
    failed = [row for row in rows if row["status"] == "failed"]
    if rows[0]["status"] == "finished":
        from objrec.sweeps.chart import draw

        line = shlex.join(["python", "-m", "objrec.train", *_overrides(rows[0], fixed, keys)])
        (folder / "best.txt").write_text(line + "\n", encoding="utf-8")
        _say(f"best     {line}")
        _say(f"model    {rows[0]['model']}")
        if draw(rows, metric, [k for k in keys if k in names], folder / "sweep.png"):
            _say(f"image  {folder / 'sweep.png'}")
    _say(f"table    {folder / 'leaderboard.csv'}")
    if failed:
        place = folder / str(failed[0]["job"])
        _say(f"{len(failed)} of {len(rows)} trials failed, as in {place}: {failed[0]['reason']}")
    return 1 if failed else 0


def _overrides(row: Row, fixed: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the overrides that train this row's model again, without those that only steered the sweep."""
    varied = [f"{k}={row[k]}" for k in keys if row.get(k) is not None]
    whole = effective([*fixed, *varied])
    plain = [o for o in whole if not o.startswith(("sweep=", "sweep.", "hydra.", "hydra/"))]
    return plain if _settings(plain) == _settings(whole) else whole


def _settings(overrides: Sequence[str]) -> Any:
    return dump(load_config(overrides), keyed_only=True)


def _show(rows: Sequence[Row], metric: str, keys: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markup import escape  # a value may be a list, which Rich would take for a tag
    from rich.table import Table

    leaves = [k.rpartition(".")[2] for k in keys]
    heads = leaves if len(set(leaves)) == len(leaves) else keys  # the file has the whole keys
    table = Table("trial", metric, "status", "epoch", "seconds", *heads)
    for row in rows[:SHOWN]:
        value = "" if row[metric] is None else f"{row[metric]:.4f}"
        epoch = "" if row["epoch"] is None else str(row["epoch"])
        cells = [escape(str(row.get(k, ""))) for k in keys]
        table.add_row(str(row["job"]), value, row["status"], epoch, f"{row['seconds']:.1f}", *cells)
    Console().print(table)
    if len(rows) > SHOWN:
        _say(f"and {len(rows) - SHOWN} more")


def _say(text: str) -> None:
    print(text, flush=True)
