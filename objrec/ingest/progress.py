"""What a person sees while images come in: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from objrec.ingest.selection import CandidateSelection
from objrec.system import progress as pipeline

LINE_EVERY: Final = 10.0  # seconds between lines where there is no terminal
DRAW_EVERY: Final = 0.2
REPORT_EVERY: Final = 0.05
RATE_OVER: Final = 20  # decisions that the rate is taken over


class IngestProgress:
    """Shows a selection as it grows; use as a context manager.

    Args:
        wanted: images for each class; None: all.
    """

    def __init__(self, selection: CandidateSelection, class_names: Sequence[str], wanted: int | None) -> None:
        self._selection, self._names, self._wanted = selection, class_names, wanted
        self._times: dict[str, deque[float]] = {n: deque(maxlen=RATE_OVER) for n in class_names}
        self._all: deque[float] = deque(maxlen=200)
        self._live: Any = None
        self._shown = self._told = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, class_name: str) -> None:
        """A candidate of ``class_name`` was decided."""
        now = time.monotonic()
        self._times[class_name].append(now)
        self._all.append(now)
        if now - self._told < REPORT_EVERY and self._selection.missing(class_name):
            return
        self._told = now
        kept = sum(map(self._selection.kept, self._names))
        total = None if self._wanted is None else self._wanted * len(self._names)
        pipeline.report(kept, total, f"images, {_rate(self._all, now)}")
        if self._live is not None and now - self._shown > DRAW_EVERY:
            self._shown = now
            self._live.update(self._table(now), refresh=True)
        elif self._live is None and now - self._shown > LINE_EVERY:
            self._shown = now
            print(f"ingest: {kept} kept, {_rate(self._all, now)}; {self._open()}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say something that stays."""
        if self._live is not None:
            self._live.console.print(text)
        else:
            pipeline.note(text)

    def _open(self) -> str:
        behind = [
            f"{n} {self._selection.kept(n)}/{asked(self._wanted)}" for n in self._names if self._selection.missing(n)
        ]
        return ", ".join(behind[:6]) + (f" and {len(behind) - 6} more" if len(behind) > 6 else "")

    def _table(self, now: float) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("class", "kept", "", "failed", "rate", "last trouble"):
            table.add_column(title, justify="right" if title in ("kept", "failed", "rate") else "left")
        shown = [n for n in self._names if self._selection.missing(n)][:30] or list(self._names)[:30]
        for name in shown:
            counts = Counter(self._selection.statuses(name))
            kept = counts.pop("kept", 0)
            bar = "█" * (0 if self._wanted is None else round(20 * min(1.0, kept / self._wanted)))
            trouble = ", ".join(f"{n} {s}" for s, n in counts.most_common(3))
            table.add_row(
                name,
                f"{kept}/{asked(self._wanted)}",
                f"{bar:<20}",
                str(counts.total()),
                _rate(self._times[name], now),
                trouble,
            )
        return table


def _rate(times: Sequence[float], now: float) -> str:
    seconds = now - times[0] if times else 0.0
    return f"{len(times) / seconds:.1f}/s" if len(times) > 1 and seconds > 0 else "-"


def asked(wanted: int | None, classes: int = 1) -> str:
    """How many images were asked for, for people."""
    return "all" if wanted is None else str(wanted * classes)


def yield_table(statuses: Mapping[str, Mapping[str, int]], wanted: int | None) -> str:
    """Return the table of what came of each class's candidates, as text."""
    totals: Counter[str] = Counter()
    for counts in statuses.values():
        totals.update(counts)
    columns = ["kept", *sorted((s for s in totals if s != "kept"), key=lambda s: -totals[s])]
    lines = [["class", "asked", "found", *columns]]
    for name, counts in statuses.items():
        lines.append([name, asked(wanted), str(sum(counts.values())), *(str(counts.get(c, 0) or "") for c in columns)])
    lines.append(["all", asked(wanted, len(statuses)), str(totals.total()), *(str(totals[c]) for c in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
