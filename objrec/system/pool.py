"""Processes that do the same to many items and may die of it: each death costs at most the item that caused it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from math import inf
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

from objrec.config.errors import UserError
from objrec.system.files import lock
from objrec.system.processes import die_with_parent

AHEAD: Final = 2  # batches that a worker has been given: it need not wait while this process is busy
BATCH_SECONDS: Final = 0.05  # of work in a batch: what may wait behind one slow item
BATCH_BYTES: Final = 1 << 18
LARGEST_BATCH: Final = 32
TRIES: Final = 2  # a worker may also be killed for what others took of the memory
HOPELESS: Final = 20  # deaths before any item was done: it is not the items
GRACE: Final = 10.0  # seconds to finish what was begun, at the end
IDLE: Final = -1
Alone = Callable[[], AbstractContextManager[None]]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Lost:
    """Stands for the result of an item that no worker survived. ``reason`` is for people, after "doing it"."""

    reason: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands for the result of an item over which the work raised, or of all where no worker can be had."""

    error: Exception


@dataclass
class _Worker:
    slot: int
    process: Any
    channel: connection.Connection
    given: dict[int, tuple[Any, int]] = field(default_factory=dict)  # items whose results are not here yet
    batches: int = 0
    late: bool = False


class WorkerPool(Generic[Item, Result]):
    """Applies a function to items in several processes. Use as a context manager.

    The processes are started at once and, on Linux, forked: make the pool before anything that starts threads, opens a
    database or holds a lock. One that dies is replaced, by a fork where this process has no threads but the pool's. It
    notes in shared memory which item it is on. When it dies, or is killed because it takes too long, that item is tried
    once more (not after a time-out) and then given up; its other items go to the next worker. Workers are silent (what
    C libraries print is for nobody), ignore Ctrl-C and end with this process.

    Args:
        work: called with an item and ``alone``, a context manager that one worker at a time can be in; the time spent
            waiting for it does not count. Results should be small. Must be picklable beside other threads.
        done: called from threads of the pool with [(number, result, ``Lost`` or ``Failed``), ...].
        workers: processes.
        timeout: seconds for one item.
    """

    def __init__(
        self,
        work: Callable[[Item, Alone], Result],
        done: Callable[[list[tuple[int, Result | Lost | Failed]]], object],
        *,
        workers: int,
        timeout: float,
    ) -> None:
        self._work, self._done, self._timeout = work, done, timeout
        self._current: Any = get_context().RawArray("q", [IDLE] * workers)
        self._since: Any = get_context().RawArray("d", workers)
        self._waiting: OrderedDict[int, tuple[Item, int]] = OrderedDict()
        self._change = threading.Condition()
        self._deaths: dict[int, int] = {}
        self._hopeful = False  # that any item can be done
        self._seconds_each = BATCH_SECONDS
        self._closing = threading.Event()
        self._fault: Exception | None = None
        handle, self._turn = tempfile.mkstemp(prefix="objrec-turn-")
        os.close(handle)
        self._threads: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        try:
            for slot in range(workers):
                self._workers.append(self._start(slot))
        except BaseException:
            self._end()
            raise
        self._threads = [threading.Thread(target=self._tend, args=(w,), daemon=True) for w in self._workers]
        self._threads.append(threading.Thread(target=self._kill_late, daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(grace=GRACE if kind is None else 0)

    def put(self, number: int, item: Item, size: int = 0) -> None:
        """Hand in an item under a number of its own. ``size``: its bytes, if it is large."""
        self.put_all([(number, item, size)])

    def put_all(self, items: Iterable[tuple[int, Item, int]]) -> None:
        """Hand in several items: number, item and size."""
        with self._change:
            numbers = []
            for number, item, size in items:
                self._waiting[number] = item, size
                numbers.append(number)
            self._change.notify_all()
        if self._fault is not None:
            self._give_up()

    def drop(self, number: int) -> None:
        """Forget an item that no worker has yet."""
        with self._change:
            self._waiting.pop(number, None)

    def close(self, grace: float = GRACE) -> None:
        """Let the workers finish within ``grace`` seconds what they were given; afterwards none of them runs."""
        self._closing.set()
        with self._change:
            self._waiting.clear()
            self._change.notify_all()
        deadline = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._end()
        for thread in self._threads:
            thread.join()

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        Path(self._turn).unlink(missing_ok=True)

    def _start(self, slot: int) -> _Worker:
        # fork: nothing to import again. Not beside threads that may hold locks, as ours do not hold any that a worker
        # takes; nor where system libraries do not survive it, which is everywhere but on Linux
        fork = sys.platform.startswith("linux") and threading.active_count() <= 1 + len(self._threads)
        context: Any = get_context("fork" if fork else "spawn")
        mine, theirs = context.Pipe()
        self._current[slot] = IDLE
        process = context.Process(
            target=_serve,
            args=(theirs, self._work, slot, self._current, self._since, self._turn, os.getpid()),
            daemon=True,
        )
        process.start()
        theirs.close()  # or the next worker would inherit it, and this one's death would not show
        return _Worker(slot, process, mine)

    def _tend(self, worker: _Worker) -> None:
        """Feed one worker and its successors, and pass on their results."""
        try:
            while self._feed(worker):
                try:
                    batches, rows, seconds = worker.channel.recv()
                except (EOFError, OSError, pickle.UnpicklingError):  # it died, perhaps amid a message
                    if self._closing.is_set():
                        return
                    rows = self._bury(worker)
                    worker = self._workers[worker.slot] = self._start(worker.slot)
                    if self._closing.is_set():  # perhaps after all others were ended
                        worker.process.kill()
                        worker.process.join()
                else:
                    worker.batches -= batches
                    self._settle(worker, rows, seconds)
                if rows:
                    self._done(rows)
        except Exception as error:
            self._fail(worker, error)
        finally:
            worker.channel.close()

    def _feed(self, worker: _Worker) -> bool:
        """Give a worker what it can take; wait while there is nothing to do. Returns whether an answer will come."""
        while worker.batches < AHEAD:
            with self._change:
                while not self._waiting and not worker.given and not self._closing.is_set() and self._fault is None:
                    self._change.wait()
                batch = self._take()
            if not batch:
                break
            worker.given.update(batch)
            worker.batches += 1
            with contextlib.suppress(OSError):  # dead: what it was given comes back when that is noticed
                worker.channel.send([(number, item) for number, (item, _) in batch.items()])
        return bool(worker.given)

    def _take(self) -> dict[int, tuple[Item, int]]:
        """Take a batch of what waits."""
        fair = -(-len(self._waiting) // len(self._workers))
        most = max(1, min(LARGEST_BATCH, fair, int(BATCH_SECONDS / self._seconds_each)))
        batch: dict[int, tuple[Item, int]] = {}
        room = BATCH_BYTES
        while self._waiting and len(batch) < most and not self._closing.is_set():
            number, (item, size) = self._waiting.popitem(last=False)
            batch[number] = item, size
            room -= size
            if room <= 0:
                break
        return batch

    def _settle(self, worker: _Worker, rows: Sequence[tuple[int, Any]], seconds: float) -> None:
        for number, _ in rows:
            worker.given.pop(number)
            self._deaths.pop(number, None)
        if rows:
            self._hopeful = True
            self._deaths.pop(IDLE, None)
            self._seconds_each = 0.8 * self._seconds_each + 0.2 * max(seconds / len(rows), 1e-5)

    def _bury(self, worker: _Worker) -> list[tuple[int, Any]]:
        """Take stock of what a dead worker was given: return what is given up, queue the rest again."""
        worker.process.join()
        worker.channel.close()
        number = int(self._current[worker.slot])
        lost: list[tuple[int, Any]] = []
        deaths = self._deaths[number] = self._deaths.get(number, 0) + 1
        cause = _cause(worker.process.exitcode)
        if number in worker.given and (worker.late or deaths >= TRIES):
            reason = f"took more than {self._timeout:g} s" if worker.late else f"ended the process ({cause})"
            lost.append((number, Lost(reason, late=worker.late)))
            worker.given.pop(number)
            self._hopeful = self._hopeful or worker.late
        if self._deaths.get(IDLE, 0) >= HOPELESS or (not self._hopeful and sum(self._deaths.values()) >= HOPELESS):
            raise UserError(
                f"{HOPELESS} processes in a row were ended ({cause}) before anything was done: is there enough memory?"
            )
        with self._change:
            for again, what in reversed(worker.given.items()):
                self._waiting[again] = what
                self._waiting.move_to_end(again, last=False)
            worker.given.clear()
            self._change.notify_all()
        return lost

    def _fail(self, worker: _Worker, error: Exception) -> None:
        """Answer what this worker had and what waits with an error; what others have, they still do."""
        with self._change:
            self._fault = self._fault or error
            self._waiting.update(worker.given)
            worker.given.clear()
            self._change.notify_all()
        self._give_up()

    def _give_up(self) -> None:
        """Answer all that waits with what keeps workers from being had."""
        assert self._fault is not None
        with self._change:
            numbers = [*self._waiting]
            self._waiting.clear()
        if numbers:
            self._done([(n, Failed(self._fault)) for n in numbers])

    def _kill_late(self) -> None:
        while not self._closing.wait(min(0.2, self._timeout / 4)):
            now = time.monotonic()
            for worker in self._workers:
                if self._current[worker.slot] != IDLE and now - self._since[worker.slot] > self._timeout:
                    worker.late = True
                    worker.process.kill()


def run_all(
    work: Callable[[Item, Alone], Result], items: Iterable[Item], *, workers: int, timeout: float
) -> Iterator[tuple[int, Result | Lost]]:
    """Yield (place in ``items``, result) for every item, in no particular order; see ``WorkerPool``.

    What ``work`` raises ends it: that is a defect, or a full disk.
    """
    results: queue.SimpleQueue[list[tuple[int, Result | Lost | Failed]]] = queue.SimpleQueue()
    jobs = [(number, item, 0) for number, item in enumerate(items)]
    with WorkerPool(work, results.put, workers=max(1, min(workers, len(jobs))), timeout=timeout) as pool:
        pool.put_all(jobs)
        left = len(jobs)
        while left:
            for number, result in results.get():
                if isinstance(result, Failed):
                    raise result.error
                left -= 1
                yield number, result


def _serve(
    channel: connection.Connection,
    work: Callable[[Item, Alone], Result],
    slot: int,
    current: Any,
    since: Any,
    turn: str,
    parent: int,
) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _be_silent()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123
        score.write("1000")  # when memory runs out, let it be this process and not the parent

    @contextlib.contextmanager
    def alone() -> Iterator[None]:
        since[slot] = inf
        with lock(Path(turn), required=False):
            since[slot] = time.monotonic()
            yield

    while True:
        try:
            batch = channel.recv()
        except (EOFError, OSError):
            return
        rows: list[tuple[int, Any]] = []
        begin = time.monotonic()
        try:
            for number, item in batch:
                since[slot] = now = time.monotonic()
                current[slot] = number
                if now - begin > 2 * BATCH_SECONDS:
                    channel.send((0, rows, now - begin))
                    rows, begin = [], now
                rows.append((number, _result(work, item, alone)))
            current[slot] = IDLE
            channel.send((1, rows, time.monotonic() - begin))
        except BrokenPipeError:
            return


def _result(work: Callable[[Item, Alone], Result], item: Item, alone: Alone) -> Result | Failed:
    try:
        return work(item, alone)
    except Exception as error:
        if not isinstance(error, UserError | OSError):
            error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return Failed(RuntimeError(traceback.format_exc()))
        return Failed(error)


def _be_silent() -> None:
    """Let the report of a crash and what C libraries print go nowhere: the parent says what became of which item."""
    faulthandler.disable()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"
