"""Memory for decoding: what an image costs, known from its header, and a budget that hands bytes out."""

from __future__ import annotations

import contextlib
import math
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from objrec.images.decode import FINER, ImageError, open_checked

PASSING: Final = 64  # who asks for no more than that part of a budget does not queue behind those who ask for more
UNKNOWN_MEMORY: Final = 2**30  # taken for available where the system does not say
# bytes a pixel, the most at one time: Pillow's image (four bytes for any colour), its copies on the way to RGB, ours
OF_MODE: Final = {"1": 11, "L": 11, "P": 11, "RGB": 14}
TRANSPARENT, WIDE, WEBP = 20, 27, 24  # laid over a ground; 16 and 32 bits, scaled to 8; with its decoder's own canvas
FULL_JPEG: Final = 14  # by Pillow
JPEG_RGB: Final = 3  # libjpeg-turbo writes into our array, a few rows at a time
COEFFICIENT: Final = 2  # of each component, kept until the last scan of a file with more than one
SMALL: Final = 65536  # bytes that any image may cost beside its pixels
SEGMENTS: Final = 1000  # of metadata; after more the header is left to Pillow
FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers of a JPEG's frame header
PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
SCAN: Final = 0xDA
PNG: Final = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of decoding one image.

    Attributes:
        pixels: width x height as its file stores it; a measure of the time.
        memory: bytes at the most expensive moment, the encoded image not included.
        patient: the same where a JPEG's reduced decoding fails, see ``decode_stored``.
    """

    pixels: int
    memory: int
    patient: int


def decoding_cost(data: bytes, *, max_pixels: int, target: int | None = None) -> Cost:
    """Return what ``objrec.images.decode.decode_stored`` will take for these arguments; reads the header only.

    Raises:
        ImageError: as ``decode_stored``, for what the header shows.
    """
    frame = _frame(data)
    if frame is not None and 0 < frame.width * frame.height <= max_pixels:
        width, height, pixels = frame.width, frame.height, frame.width * frame.height
        needed = math.inf if target is None else math.ceil(FINER * target)
        eighths = next((m for m in range(1, 8) if min(width, height) * m >= 8 * needed), 8)
        reduced = -(-width * eighths // 8) * -(-height * eighths // 8)
        kept = COEFFICIENT * frame.samples if frame.scans else 0
        return Cost(pixels, JPEG_RGB * reduced + kept + SMALL, FULL_JPEG * pixels + kept + SMALL)
    with open_checked(data, max_pixels=max_pixels) as image:
        pixels = image.width * image.height
        if image.mode[:1] in "IF":
            each = WIDE
        elif image.format == "WEBP":
            each = WEBP
        elif "A" in image.getbands() or "transparency" in image.info:
            each = TRANSPARENT
        else:
            each = OF_MODE.get(image.mode, TRANSPARENT)
        return Cost(pixels, each * pixels + SMALL, each * pixels + SMALL)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a JPEG in colour or grey says of itself. samples: of all components; scans: whether there are several."""

    width: int
    height: int
    samples: int
    scans: bool


def _frame(data: bytes) -> _Frame | None:
    """Return the frame of a JPEG whose segments follow one another; None for anything else."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    width = height = samples = components = 0
    scans = False
    for _ in range(SEGMENTS):
        if data[at : at + 1] != b"\xff" or len(data) < at + 12:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SCAN:
            several = scans or data[at + 4] < components
            return _Frame(width, height, samples, several) if components in (1, 3) else None
        if marker in FRAMES:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            factors = [(f >> 4) * (f & 15) for f in data[at + 11 : at + 2 + length : 3]]
            components, scans = data[at + 9], marker in PROGRESSIVE
            if len(factors) != components or 0 in factors:
                return None
            samples = width * height * sum(factors) // max(factors)
        at += 2 + length
    return None


class OverBudget(ValueError):
    """More is asked for than a budget has when nobody else holds any of it."""


class Budget:
    """Bytes, handed out in the order in which they are asked for; for threads and for an event loop alike."""

    def __init__(self, size: int) -> None:
        self.size = self.free = size
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    @contextlib.contextmanager
    def take(self, cost: int, *, timeout: float | None = None) -> Iterator[None]:
        """Hold ``cost`` bytes.

        Args:
            timeout: seconds to wait for them; None: no limit.

        Raises:
            OverBudget: there will never be so many.
            TimeoutError: others held them all the time.
        """
        granted = self._ask(cost)
        try:
            granted.result(timeout)
        except BaseException:
            self._withdraw(cost, granted)
            raise
        try:
            yield
        finally:
            self._give_back(cost)

    @contextlib.asynccontextmanager
    async def taken(self, cost: int, *, timeout: float | None = None) -> AsyncIterator[None]:
        """As ``take``, for an event loop."""
        import asyncio  # whose import takes longer than all else here

        granted = self._ask(cost)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(granted)
        except BaseException:
            self._withdraw(cost, granted)
            raise
        try:
            yield
        finally:
            self._give_back(cost)

    def _ask(self, cost: int) -> Future[None]:
        if cost > self.size:
            raise OverBudget(f"{cost} bytes of memory are needed, and there are {self.size}")
        granted: Future[None] = Future()
        with self._lock:
            if cost <= self.size // PASSING:  # the small are many and soon done: they do not wait for the large
                self._waiting.appendleft((cost, granted))
            else:
                self._waiting.append((cost, granted))
            self._hand_out()
        return granted

    def _give_back(self, cost: int) -> None:
        with self._lock:
            self.free += cost
            self._hand_out()

    def _withdraw(self, cost: int, granted: Future[None]) -> None:
        if granted.cancel() or granted.cancelled():
            self._give_back(0)  # perhaps it was the first, and the next fits
        else:
            self._give_back(cost)

    def _hand_out(self) -> None:
        while self._waiting:
            cost, granted = self._waiting[0]
            if not granted.cancelled() and cost > self.free:
                return
            self._waiting.popleft()
            if granted.set_running_or_notify_cancel():
                self.free -= cost
                granted.set_result(None)


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """What one of several processes may take for decoding: half of the memory is shared out, half is for the large.

    Attributes:
        each: bytes that each process may take at any time.
        most: bytes that one process at a time may take.
    """

    each: int
    most: int

    @classmethod
    def among(cls, processes: int) -> MemoryShare:
        """Of half of what is available now."""
        half = available_memory() // 4
        return cls(max(half // processes, SMALL), half)

    @contextlib.contextmanager
    def hold(
        self, data: bytes, alone: Callable[[], AbstractContextManager[None]], *, max_pixels: int, target: int | None
    ) -> Iterator[None]:
        """Enter ``alone`` where decoding costs more than the share.

        Raises:
            ImageError: it costs more than there is.
        """
        if (
            data[:8] == PNG
            and WIDE * math.prod(struct.unpack_from(">II", data[:24].ljust(24, b"\xff"), 16)) < self.each
        ):
            yield  # as most do: to open a small one costs as much as to decode it
            return
        memory = 0
        with contextlib.suppress(ImageError):  # what is wrong with its header is for the decoder to say
            memory = decoding_cost(data, max_pixels=max_pixels, target=target).memory
        if memory > self.most:
            raise ImageError(
                "too_large", f"decoding it takes {memory >> 20} MiB of memory, and it may take {self.most >> 20}"
            )
        with alone() if memory > self.each else contextlib.nullcontext():
            yield


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: what the machine has, or its control group where less."""
    found = [UNKNOWN_MEMORY]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        found = [int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024]
    groups = ""
    with contextlib.suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text()
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / path.lstrip("/")
        for group in [folder, *folder.parents]:  # each limits those below it; inside a container only the top is there
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                found.append(int((group / limit).read_text()) - int((group / used).read_text()))
            if group == top:
                break
    return max(0, min(found))
