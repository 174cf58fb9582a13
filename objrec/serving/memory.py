"""How much memory requests may take together: as bodies while they arrive, and while their images are decoded."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from objrec.images.budget import Budget, Cost, OverBudget, available_memory, decoding_cost
from objrec.images.decode import NotReduced
from objrec.serving import request as handler
from objrec.serving.request import RequestError

if TYPE_CHECKING:
    from objrec.inference.predictor import Predictor
    from objrec.serving.request import Upload

MEBIBYTE = 1 << 20
M_MMAP_THRESHOLD = -3  # of malloc.h
AUTO, AUTO_PART = 192 * MEBIBYTE, 4  # serve.memory=auto: that much, or this part of what is available where it is less
FREE = 65536  # bytes of a body that cost nothing: what a connection holds anyway
LARGE_BODY = MEBIBYTE
READING = 2  # times its size, to take an image out of JSON or a form


class RequestMemory:
    """The budget of ``serve.memory``, in three parts that are never waited for while holding another of the same kind.

    Bodies take a third, half of it for small ones alone, so that slow uploads of large images keep no small image out;
    decoding takes the rest. A body is held until its image is decoded, and decoding never waits for a body: nothing can
    wait in a circle.

    Args:
        size: bytes; None: chosen by what is available.
        max_body: bytes of the largest body that is read; one of them always fits.
    """

    def __init__(self, size: int | None, *, max_body: int) -> None:
        self.size = min(AUTO, available_memory() // AUTO_PART) if size is None else size
        self._small, self._large = Budget(max(self.size // 6, LARGE_BODY)), Budget(max(self.size // 6, max_body))
        self.decoding = Budget(self.size - self.size // 3)

    @property
    def used(self) -> int:
        """Bytes that are handed out."""
        return sum(b.size - b.free for b in (self._small, self._large, self.decoding))

    @contextlib.asynccontextmanager
    async def body(self, size: int, *, timeout: float) -> AsyncIterator[None]:
        """Hold memory for a body of ``size`` bytes. Raises RequestError 429 where none comes free in time."""
        lane = self._small if size <= LARGE_BODY else self._large
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(lane.taken(size, timeout=timeout))
            except TimeoutError:
                raise _full(timeout) from None
            yield

    @contextlib.contextmanager
    def reading(self, body: bytes, deadline: float) -> Iterator[None]:
        """Hold memory for taking the image out of ``body``. Raises RequestError."""
        with self._held(READING * len(body) if len(body) > FREE else 0, deadline):
            yield

    def cost(self, upload: Upload, predictor: Predictor) -> Cost:
        """Return what decoding an upload's image will take. Raises RequestError, 413 where that is never there."""
        data = handler.image_of(upload)
        with handler.image_errors():
            cost = decoding_cost(data, max_pixels=predictor.max_pixels, target=predictor.card.preprocessing.target)
        if cost.memory > self.decoding.size:
            raise self._too_large(cost.memory)
        return cost

    def pixels(self, upload: Upload, predictor: Predictor, cost: Cost, deadline: float) -> Any:
        """Decode with memory held: uint8 (size, size, 3). Raises RequestError, 503 when it is too late to begin."""
        try:
            with self._held(cost.memory, deadline):
                return handler.decode(upload, predictor, patient=False)
        except NotReduced:
            with self._held(cost.patient, deadline):
                return handler.decode(upload, predictor)

    @contextlib.contextmanager
    def _held(self, cost: int, deadline: float) -> Iterator[None]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RequestError(503, "timeout", "no time is left to begin with this image", retry_after=1)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.decoding.take(cost, timeout=left))
            except OverBudget:
                raise self._too_large(cost) from None
            except TimeoutError:
                raise _full(left) from None
            yield

    def _too_large(self, cost: int) -> RequestError:
        has = (
            f"decoding this image takes {cost // MEBIBYTE} MiB, and this endpoint has {self.decoding.size // MEBIBYTE}"
        )
        return RequestError(413, "too_large", f"{has} (serve.memory): send it smaller, or as a JPEG")


def return_large_blocks() -> None:
    """Have the C library give blocks of a mebibyte back to the system when they are freed.

    Left alone, glibc raises that limit to 32 MiB after the first large block, keeps what was freed, and a service that
    had a few large requests stays as large as all of them.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MEBIBYTE)


def _full(seconds: float) -> RequestError:
    reason = f"other images took all memory (serve.memory) for {seconds:.1f} s: try again"
    return RequestError(429, "memory", reason, retry_after=1)


def largest_body(max_bytes: int) -> int:
    """Return the bytes of the largest body that is read: base64 and a form's frame around the image."""
    return max_bytes * 4 // 3 + 65536
