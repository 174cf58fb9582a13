"""Work on many files in processes that may die: each death costs at most the file that caused it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from typing import Any, Final, Generic, TypeVar

from objrec.config.errors import UserError
from objrec.system.processes import die_with_parent

AHEAD: Final = 2  # batches that a worker has been given: it need not wait while this process is busy
BATCH_SECONDS: Final = 0.05  # of work in a batch: what may wait behind one slow file
LARGEST_BATCH: Final = 32
TRIES: Final = 2  # a worker may also be killed for what others took of the memory
HOPELESS: Final = 20  # deaths before any file was done: it is not the files
IDLE: Final = -1
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lost:
    """A file that no worker survived. ``reason`` is for people."""

    reason: str


@dataclass
class _Worker:
    slot: int
    process: Any
    channel: connection.Connection
    given: deque[int] = field(default_factory=deque)  # files whose results are not here yet, in order
    batches: int = 0
    overdue: bool = False


class FilePool(Generic[T]):
    """Applies a function to files in several processes.

    A worker tells in shared memory which file it is on. When it dies, or is killed because it takes too long, that file
    is tried once more (not after a time-out) and then given up; its other files go to the next worker.

    Args:
        work: index and path of a file -> result. What it raises ends everything: it is a defect, or a full disk.
        workers: processes.
        timeout: seconds for one file.
    """

    def __init__(self, work: Callable[[int, str], T], paths: Sequence[str], *, workers: int, timeout: float) -> None:
        self._work, self._paths, self._timeout = work, paths, timeout
        # fork: nothing to import again; elsewhere than on Linux system libraries do not survive it
        self._context: Any = get_context("fork" if sys.platform.startswith("linux") else "spawn")
        count = max(1, min(workers, len(paths)))
        self._current = self._context.RawArray("q", [IDLE] * count)
        self._since = self._context.RawArray("d", count)
        self._todo: deque[int] = deque(range(len(paths)))
        self._deaths: dict[int, int] = {}
        self._done = 0
        self._hopeful = False  # that any file can be done
        self._seconds_each = BATCH_SECONDS
        self._workers: list[_Worker] = []
        self._count = count

    def results(self) -> Iterator[tuple[int, T | Lost]]:
        """Yield (index, result) for every file, in no particular order."""
        try:
            self._workers = [self._start(slot) for slot in range(self._count)]
            while self._done < len(self._paths):
                self._feed()
                ready = connection.wait([w.channel for w in self._workers], timeout=0.2)
                for worker in [w for w in self._workers if w.channel in ready]:
                    for index, result in self._collect(worker):
                        self._done += 1
                        yield index, result
                self._kill_overdue()
        finally:
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                worker.process.join()
                worker.channel.close()

    def _start(self, slot: int) -> _Worker:
        mine, theirs = self._context.Pipe()
        self._current[slot] = IDLE
        process = self._context.Process(
            target=_serve,
            args=(theirs, self._work, self._paths, slot, self._current, self._since, os.getpid()),
            daemon=True,
        )
        process.start()
        theirs.close()  # or the next worker would inherit it, and this one's death would not show
        return _Worker(slot, process, mine)

    def _feed(self) -> None:
        size = max(1, min(LARGEST_BATCH, int(BATCH_SECONDS / self._seconds_each)))
        for _ in range(AHEAD):
            for worker in self._workers:
                if not self._todo or worker.batches >= AHEAD:
                    continue
                batch = [self._todo.popleft() for _ in range(min(size, len(self._todo)))]
                worker.given.extend(batch)
                worker.batches += 1
                with contextlib.suppress(OSError):  # dead: what it was given comes back when that is noticed
                    worker.channel.send(batch)

    def _collect(self, worker: _Worker) -> list[tuple[int, T | Lost]]:
        try:
            finished, rows, seconds, error = worker.channel.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps amid a message
            return self._bury(worker)
        if error is not None:
            raise error
        worker.batches -= finished
        for index, _ in rows:
            worker.given.remove(index)
            self._deaths.pop(index, None)
        if rows:
            self._hopeful = True
            self._seconds_each = 0.8 * self._seconds_each + 0.2 * max(seconds / len(rows), 1e-5)
        return rows  # type: ignore[no-any-return]

    def _bury(self, worker: _Worker) -> list[tuple[int, T | Lost]]:
        worker.process.join()
        worker.channel.close()
        culprit = int(self._current[worker.slot])
        lost: list[tuple[int, T | Lost]] = []
        if culprit in worker.given:
            self._deaths[culprit] = self._deaths.get(culprit, 0) + 1
            if worker.overdue:
                reason = f"timeout: not decoded within {self._timeout:g} s"
            else:
                reason = f"crashed: decoding it ended the process ({_cause(worker.process.exitcode)})"
            if worker.overdue or self._deaths[culprit] >= TRIES:
                lost.append((culprit, Lost(reason)))
                worker.given.remove(culprit)
        if not self._hopeful and sum(self._deaths.values()) >= HOPELESS:
            raise UserError(
                f"{HOPELESS} processes in a row were ended ({_cause(worker.process.exitcode)}) before any image was "
                "done: is there enough memory? preprocess.workers=1 needs the least"
            )
        self._todo.extendleft(reversed(worker.given))
        self._workers[self._workers.index(worker)] = self._start(worker.slot)
        return lost

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if self._current[worker.slot] != IDLE and now - self._since[worker.slot] > self._timeout:
                worker.overdue = True
                worker.process.kill()


def _serve(
    channel: connection.Connection,
    work: Callable[[int, str], T],
    paths: Sequence[str],
    slot: int,
    current: Any,
    since: Any,
    parent: int,
) -> None:
    die_with_parent()
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write("1000")  # when memory runs out, let it be this process and not the parent
    while True:
        try:
            batch = channel.recv()
        except (EOFError, OSError):
            return
        rows: list[tuple[int, T]] = []
        begin = time.monotonic()
        try:
            for index in batch:
                since[slot] = time.monotonic()
                current[slot] = index
                rows.append((index, work(index, paths[index])))
                if (now := time.monotonic()) - begin > 2 * BATCH_SECONDS:
                    channel.send((0, rows, now - begin, None))
                    rows, begin = [], now
            current[slot] = IDLE
            channel.send((1, rows, time.monotonic() - begin, None))
        except BrokenPipeError:
            return
        except Exception as error:
            channel.send((0, [], 0.0, error))
            return


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
