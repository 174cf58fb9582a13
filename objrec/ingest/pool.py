"""Processes that examine images for an event loop. One that dies costs the image that it was at, and no other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from objrec.config.environment import child_environment
from objrec.images.decode import ImageError
from objrec.ingest.examine import ExaminedImage
from objrec.ingest.examiner import Setup
from objrec.system.cores import available_cores
from objrec.system.processes import PARENT

BACKLOG: Final = 1 << 18  # bytes that a process may have waiting: work while the event loop is elsewhere
BACKLOG_JOBS: Final = 64
ROOM: Final = 64 << 20  # bytes in waiting above which no more should be downloaded
PATIENCE: Final = 60.0  # seconds for an image, then its process is killed
GRACE: Final = 10.0  # seconds to finish what was begun, at the end
COMMAND: tuple[str, ...] = ("-m", "objrec.ingest.examiner")
LINE: Final = 1 << 20  # bytes of an answer


class ExaminerDied(Exception):
    """The process ended over an image; another time it may not."""


@dataclass(slots=True)
class _Job:
    head: bytes
    data: bytes
    answer: asyncio.Future[dict[str, Any]]


@dataclass(slots=True)
class _Worker:
    """A process and what it was given, in order.

    Attributes:
        since: when it began with the first of ``jobs``, on the clock of time.monotonic; None before it is ready.
        late: it was killed for taking too long.
    """

    process: asyncio.subprocess.Process
    jobs: deque[_Job] = field(default_factory=deque)
    load: int = 0
    since: float | None = None
    late: bool = False

    def takes(self, job: _Job) -> bool:
        return not self.jobs or (self.load + len(job.data) <= BACKLOG and len(self.jobs) < BACKLOG_JOBS)

    def give(self, job: _Job) -> None:
        if not self.jobs and self.since is not None:
            self.since = time.monotonic()
        self.jobs.append(job)
        self.load += len(job.data)
        assert self.process.stdin is not None
        self.process.stdin.writelines((job.head, job.data))

    def finished(self) -> _Job:
        job = self.jobs.popleft()
        self.load -= len(job.data)
        self.since = time.monotonic()
        return job


class ExaminerPool:
    """Use as an async context manager. The first process starts at once, further ones when it cannot keep up.

    Args:
        most: processes at once.
        patience: seconds for an image.
    """

    def __init__(self, setup: Setup, *, most: int | None = None, patience: float = PATIENCE) -> None:
        self._setup = json.dumps(asdict(setup)).encode() + b"\n"
        self._most = most or available_cores()
        self._patience = patience
        self._waiting: deque[_Job] = deque()
        self._held = 0  # bytes of images that are not examined yet
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._workers: list[_Worker] = []
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._fault: Exception | None = None

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watch_over())
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the processes finish what they were given: afterwards nobody writes any more."""
        self._closing = True
        self._watch.cancel()
        for job in self._waiting:
            job.answer.cancel()
        self._waiting.clear()
        for worker in self._workers:
            _close_input(worker)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE)
        for worker in self._workers:
            worker.process.kill()
        await asyncio.gather(self._watch, *self._tasks, return_exceptions=True)

    async def examine(self, way: str, name: str, data: bytes) -> ExaminedImage:
        """Examine an image and write it where ``way`` says (see ``objrec.ingest.examiner``).

        Raises:
            ImageError: as ``objrec.ingest.examine``.
            ExaminerDied: decoding it ended the process, or took too long.
        """
        if self._fault is not None:
            raise self._fault
        head = json.dumps([way, name, len(data)]).encode() + b"\n"
        job = _Job(head, data, asyncio.get_running_loop().create_future())
        self._hold(len(data))
        try:
            self._waiting.append(job)
            self._feed()
            answer = await job.answer
        finally:
            self._hold(-len(data))
        if "image" in answer:
            return ExaminedImage(**answer["image"])
        if "fault" in answer:
            raise RuntimeError(f"examining {name} failed:\n{answer['fault']}")
        raise ImageError(answer["status"], answer["reason"])

    async def room(self) -> None:
        """Wait until what waits to be examined is little enough for more."""
        await self._roomy.wait()

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held <= ROOM:
            self._roomy.set()
        else:
            self._roomy.clear()

    def _feed(self) -> None:
        """Give what waits to who has room; start another process where nobody has."""
        while self._waiting:
            job = self._waiting[0]
            if not job.answer.done():  # else nobody wants it any more
                free = [w for w in self._workers if w.takes(job)]
                if not free:
                    if self._running < self._most and not self._closing:
                        self._start()
                    return
                min(free, key=lambda w: w.load).give(job)
            self._waiting.popleft()

    def _start(self) -> None:
        self._running += 1
        task = asyncio.create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Start a process, pass on its answers, and take stock when it ends."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *COMMAND,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE,
                env=child_environment(**{PARENT: str(os.getpid())}),
            )  # fmt: skip
        except OSError as error:
            self._running -= 1
            self._fail(error)
            return
        worker = _Worker(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(self._setup)
        if self._closing:
            _close_input(worker)
        self._workers.append(worker)
        self._feed()
        if await process.stdout.readline():
            worker.since = time.monotonic()
            while line := await process.stdout.readline():
                job = worker.finished()
                if not job.answer.done():
                    job.answer.set_result(json.loads(line))
                self._feed()
        self._workers.remove(worker)
        self._running -= 1
        _close_input(worker)
        await process.wait()
        self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        started = worker.since is not None
        if started and worker.jobs and not (culprit := worker.jobs.popleft()).answer.done():
            culprit.answer.set_exception(ExaminerDied(f"decoding it {_how(worker)}"))
        self._waiting.extendleft(reversed(worker.jobs))
        worker.jobs.clear()
        if not started and not self._closing:
            self._fail(RuntimeError(f"the process that examines images did not start: {_how(worker)}"))
        self._feed()

    def _fail(self, error: Exception) -> None:
        """A process cannot be had. Where there are others, they have to do; else everyone who waits is told."""
        if self._workers:
            self._most = self._running
            return
        self._fault = error
        for job in self._waiting:
            if not job.answer.done():
                job.answer.set_exception(error)
        self._waiting.clear()

    async def _watch_over(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._patience / 4))
            for worker in self._workers:
                if worker.jobs and worker.since is not None and time.monotonic() - worker.since > self._patience:
                    worker.late = True
                    worker.process.kill()


def _close_input(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.close()


def _how(worker: _Worker) -> str:
    """How a process ended, in words."""
    if worker.late:
        return "took too long"
    code = worker.process.returncode or 0
    return f"ended the process: {signal.strsignal(-code) or -code}" if code < 0 else f"ended the process: exit {code}"
