"""The processes that examine images and write the good ones, and the event loop's way to them.

What decodes bytes from outside runs there and not where the downloads are: bytes that crash a decoder cost themselves
alone, and several processes keep several cores busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from objrec.images.budget import MemoryShare
from objrec.images.decode import ImageError
from objrec.images.hashing import HASHED
from objrec.ingest.examine import ExaminedImage, examine
from objrec.ingest.selection import file_of
from objrec.ingest.store import WebStore
from objrec.system.cores import available_cores
from objrec.system.pool import Alone, Failed, Lost, WorkerPool

ROOM: Final = 64 << 20  # bytes in waiting above which no more should be downloaded
PATIENCE: Final = 60.0  # seconds for an image
Job = tuple[str, str, bytes]  # way, name, image
Verdict = ExaminedImage | tuple[str, str]  # or status and reason


class ExaminerDied(Exception):
    """The process ended over an image; another time it may not."""


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Examines images and puts the good ones where they belong. Holds for all images of a run.

    Attributes:
        target: folder of the data set.
        store: folder of the store, with ``limits`` as there.
        share: memory for decoding.
    """

    max_pixels: int
    min_size: int
    target: str
    store: str
    limits: str
    share: MemoryShare

    def __call__(self, job: Job, alone: Alone) -> Verdict:
        """Examine an image and keep it: in the store, with its URL as name, or in the target, with its class."""
        way, name, data = job
        try:
            with self.share.hold(data, alone, max_pixels=self.max_pixels, target=HASHED):
                image = examine(data, max_pixels=self.max_pixels, min_size=self.min_size)
        except ImageError as error:
            if way == "store":
                self._store.record(name, status=error.status, reason=error.reason)
            return error.status, error.reason
        if way == "store":
            # The row is first: an image that is there whole is known, whenever this process is killed.
            self._store.record(name, image=image)
            self._store.write(image.sha256, data)
        else:
            Path(self.target, file_of(name, image)).write_bytes(data)
        return image

    @functools.cached_property
    def _store(self) -> WebStore:
        """Opened with the first download: by then the parent has made it."""
        return WebStore(Path(self.store), limits=self.limits)


class ExaminerPool:
    """Examiners for an event loop. A context manager, to be entered before there is a loop, see ``WorkerPool``.

    Args:
        workers: processes; None: one for each core.
        patience: seconds for an image.
    """

    def __init__(self, examiner: Examiner, *, workers: int | None = None, patience: float = PATIENCE) -> None:
        self._pool = WorkerPool(examiner, self._done, workers=workers or available_cores(), timeout=patience)
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Verdict]] = {}
        self._held = 0  # bytes of images that are not examined yet
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *more: object) -> None:
        self._pool.__exit__(kind, *more)

    async def close(self) -> None:
        """Let the processes finish what they were given: afterwards nobody writes any more."""
        await asyncio.to_thread(self._pool.close)

    async def examine(self, way: str, name: str, data: bytes) -> ExaminedImage:
        """Examine an image and write it where ``way`` says, see ``Examiner``.

        Raises:
            ImageError: as ``objrec.ingest.examine``.
            ExaminerDied: decoding it ended the process, or took too long.
        """
        self._loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer = self._answers[number] = self._loop.create_future()
        self._hold(len(data))
        try:
            self._pool.put(number, (way, name, data), len(data))
            verdict = await answer
        finally:
            self._pool.drop(number)
            del self._answers[number]
            self._hold(-len(data))
        if isinstance(verdict, ExaminedImage):
            return verdict
        raise ImageError(*verdict)

    async def room(self) -> None:
        """Wait until what waits to be examined is little enough for more."""
        await self._roomy.wait()

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held <= ROOM:
            self._roomy.set()
        else:
            self._roomy.clear()

    def _done(self, rows: Sequence[tuple[int, Verdict | Lost | Failed]]) -> None:
        """Called from the pool's threads."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, rows)

    def _settle(self, rows: Sequence[tuple[int, Verdict | Lost | Failed]]) -> None:
        for number, result in rows:
            answer = self._answers.get(number)
            if answer is None or answer.done():
                continue
            if isinstance(result, Lost):
                answer.set_exception(ExaminerDied(f"decoding it {result.reason}"))
            elif isinstance(result, Failed):
                answer.set_exception(result.error)
            else:
                answer.set_result(result)
