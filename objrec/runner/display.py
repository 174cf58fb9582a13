"""What a person sees of a pipeline run."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Any, Self


class Display:
    """What a person sees of a pipeline run: a live table on a terminal, a line per event elsewhere."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log
        self._live: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._live = Progress(
                SpinnerColumn(finished_text=" "),
                TextColumn("[bold]{task.description:<10}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def start(self, step: str, reason: str) -> None:
        self._line(f"{step}: running ({reason})")
        if self._live is not None:
            self._tasks[step] = self._live.add_task(step, total=None, text=reason)

    def advance(self, step: str, done: int, total: int | None, text: str) -> None:
        if self._live is not None:
            label = f"{done}/{total} {text}" if total else f"{done} {text}"
            self._live.update(self._tasks[step], completed=done, total=total, text=label)

    def finish(self, step: str, status: str, reason: str, seconds: float) -> None:
        why = "" if status == "failed" else f" ({reason})"  # the error itself is printed once, at the end
        self._line(f"{step}: {status}, {seconds:.1f} s{why}")
        if self._live is not None:
            if step not in self._tasks:
                self._tasks[step] = self._live.add_task(step, total=1, text="")
            self._live.update(self._tasks[step], completed=1, total=1, text=f"{status}[dim]{why}")
            self._live.stop_task(self._tasks[step])

    def note(self, text: str) -> None:
        self._line(text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)

    def _line(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, file=self._log, flush=True)
        if self._live is None:
            print(text, file=sys.stderr, flush=True)
