"""Who runs when: a bounded queue in front of as many threads as the machine has cores.

On a CPU a picture costs decode plus model, both outside Python's lock, and larger batches gain nothing (docs/serving.md
has the measurement): each thread takes one picture through both, and the machine is full when every core has one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

from objrec.serving.handler import RequestError

T = TypeVar("T")


class Scheduler:
    """Runs work on ``workers`` threads; at most ``queue`` more may wait, each at most ``timeout`` seconds in all."""

    def __init__(self, *, workers: int, queue: int, timeout: float) -> None:
        self.workers, self.queue, self.timeout = workers, queue, timeout
        self.pending = 0  # waiting and running
        self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="score")

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread. Raises RequestError 429 when the queue is full, 503 when its time is up."""
        if self.pending >= self.workers + self.queue:
            raise RequestError(429, "busy", f"{self.pending} pictures are waiting: try again", retry_after=1)
        self.pending += 1
        job = self._pool.submit(work)
        job.add_done_callback(self._done_threadsafe(asyncio.get_running_loop()))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self.timeout)
        except TimeoutError:  # a job that has begun ends by itself: pixels are bounded
            raise RequestError(503, "timeout", f"no answer within {self.timeout:g} s", retry_after=1) from None

    def _done_threadsafe(self, loop: asyncio.AbstractEventLoop) -> Callable[[object], None]:
        def done(_: object) -> None:
            try:
                loop.call_soon_threadsafe(self._leave)
            except RuntimeError:  # the loop has closed: nobody counts any more
                return

        return done

    def _leave(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
