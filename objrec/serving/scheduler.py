"""Who runs when: a bounded queue in front of some threads, and batches where they pay.

On a CPU an image costs decode plus model, both outside Python's lock, and batches gain little (the figures are in
docs/benchmarks-serving.md): each thread takes one image through both, and the machine is full when every core
has one. On a GPU many threads decode and one feeds the model with all that waits. How many threads that makes depends
on the runtime: ``objrec.inference.runtimes.callers``.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from objrec.serving.request import RequestError

if TYPE_CHECKING:
    from objrec.inference.runtimes import Logits, Pixels, Session

T = TypeVar("T")


class Scheduler:
    """Runs work on ``workers`` threads; at most ``waiting`` more may wait, each at most ``timeout`` seconds in all."""

    def __init__(self, *, workers: int, waiting: int, timeout: float) -> None:
        self.workers, self.waiting, self.timeout = 0, waiting, timeout
        self.pending = 0  # waiting and running; touched by the event loop's thread only
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.resize(workers)

    def resize(self, workers: int) -> None:
        """Have that many threads from now on; those too many end after what they were given before."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(workers, self.workers):
            self._jobs.put(None)
        for _ in range(self.workers, workers):
            self._threads.append(threading.Thread(target=self._work, name="score", daemon=True))
            self._threads[-1].start()
        self.workers = workers

    async def run(self, work: Callable[[], T], *, timeout: float | None = None) -> T:
        """Run ``work`` in a thread. Raises RequestError 429 when the queue is full, 503 when its time is up.

        Args:
            timeout: seconds, where less than usual is left.
        """
        if self.pending >= self.workers + self.waiting:
            raise RequestError(429, "busy", f"{self.pending} images are being worked on: try again", retry_after=1)
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(work, loop.create_future(), loop, self)
        self.pending += 1
        timer = loop.call_later(self.timeout if timeout is None else max(0.0, timeout), job.expire)
        self._jobs.put(job)
        try:
            return await job.future
        finally:
            timer.cancel()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()

    def close(self) -> None:
        """End the threads when the work at hand is done."""
        self.resize(0)
        for thread in self._threads:
            thread.join(self.timeout)


class _Job(Generic[T]):
    def __init__(
        self,
        work: Callable[[], T],
        future: asyncio.Future[T],
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler,
    ) -> None:
        self.work, self.future, self.loop, self.scheduler = work, future, loop, scheduler

    def run(self) -> None:
        """In a thread. Work that nobody waits for any more is not begun."""
        error: BaseException | None = None
        result: Any = None
        if not self.future.done():
            try:
                result = self.work()
            except BaseException as raised:
                error = raised
        try:
            self.loop.call_soon_threadsafe(self.finish, result, error)
        except RuntimeError:  # the loop has closed: nobody waits
            return

    def finish(self, result: T, error: BaseException | None) -> None:
        self.scheduler.pending -= 1
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def expire(self) -> None:
        if not self.future.done():
            reason = f"no answer within {self.scheduler.timeout:g} s"
            self.future.set_exception(RequestError(503, "timeout", reason, retry_after=1))


class Batcher:
    """A session that gathers the images of many threads: while the model is busy they wait, then go together.

    Nothing waits on purpose: an idle model takes a single image at once. The thread that feeds the model ends with
    the batcher: after the last request that holds it.
    """

    batched = own_threads = True

    def __init__(self, session: Session, *, max_batch: int, observe: Callable[[int], None] = lambda _: None) -> None:
        self.runtime, self.precision = session.runtime, session.precision
        feeder = _Feeder(session, max_batch, observe)
        self._waiting = feeder.waiting
        threading.Thread(target=feeder.work, name="model", daemon=True).start()  # knows the feeder, and not us
        self.close = weakref.finalize(self, feeder.waiting.put, None)

    def logits(self, pixels: Pixels) -> Logits:
        """Map uint8 (N, size, size, 3) to float32 logits (N, classes), perhaps in a batch with others' images."""
        future: Future[Logits] = Future()
        self._waiting.put((pixels, future))
        return future.result()


class _Feeder:
    def __init__(self, session: Session, max_batch: int, observe: Callable[[int], None]) -> None:
        self._session, self._max_batch, self._observe = session, max_batch, observe
        self.waiting: queue.SimpleQueue[tuple[Pixels, Future[Logits]] | None] = queue.SimpleQueue()

    def work(self) -> None:
        while (first := self.waiting.get()) is not None:
            taken, count = [first], len(first[0])
            while count < self._max_batch:
                try:
                    item = self.waiting.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    self.waiting.put(None)
                    break
                taken.append(item)
                count += len(item[0])
            self._observe(count)
            self._answer(taken)

    def _answer(self, taken: list[tuple[Pixels, Future[Logits]]]) -> None:
        import numpy as np

        try:
            logits = self._session.logits(np.concatenate([pixels for pixels, _ in taken]))
        except Exception as error:
            if len(taken) == 1:
                taken[0][1].set_exception(error)
            else:  # out of memory, say: each on its own, so that none fails by its neighbours
                for item in taken:
                    self._answer([item])
            return
        start = 0
        for pixels, future in taken:
            future.set_result(logits[start : start + len(pixels)])
            start += len(pixels)
