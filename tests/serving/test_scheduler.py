"""Threads, queue, batches."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from objrec.serving.request import RequestError
from objrec.serving.scheduler import Batcher, Scheduler


def run(work: Callable[[Scheduler], Any], **options: Any) -> Any:
    async def main() -> Any:
        scheduler = Scheduler(**{"workers": 2, "waiting": 2, "timeout": 5.0, **options})
        try:
            return await work(scheduler)
        finally:
            scheduler.close()

    return asyncio.run(main())


def test_workers_run_at_once_and_a_failure_is_its_own() -> None:
    barrier = threading.Barrier(2, timeout=5)

    def fail() -> None:
        barrier.wait()
        raise RequestError(422, "bad", "bad")

    async def work(s: Scheduler) -> Any:
        return await asyncio.gather(s.run(lambda: barrier.wait() >= 0), s.run(fail), return_exceptions=True)

    good, bad = run(work)
    assert good is True and isinstance(bad, RequestError)


def test_a_full_queue_refuses_with_429() -> None:
    release = threading.Event()

    async def work(s: Scheduler) -> Any:
        tasks = [asyncio.create_task(s.run(release.wait)) for _ in range(6)]
        await asyncio.sleep(0.05)
        release.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return found, s.pending

    found, pending = run(work)
    refused = [e for e in found if isinstance(e, RequestError)]
    assert len(refused) == 2 and all(e.status == 429 and e.retry_after for e in refused)
    assert found.count(True) == 4 and pending == 0


def test_work_that_waited_too_long_is_refused_and_never_begun() -> None:
    begun, release = [], threading.Event()

    async def work(s: Scheduler) -> Any:
        slow = asyncio.create_task(s.run(release.wait))
        late = asyncio.create_task(s.run(lambda: begun.append(1)))
        found = await asyncio.gather(slow, late, return_exceptions=True)
        release.set()
        async with asyncio.timeout(30):
            while s.pending:
                await asyncio.sleep(0.01)
        return found, s.pending

    found, pending = run(work, workers=1, timeout=0.1)
    assert [e.status for e in found] == [503, 503] and begun == [] and pending == 0


def test_threads_are_as_many_as_asked_for_from_then_on() -> None:
    async def at_once(s: Scheduler, count: int, expected: int) -> int:
        """Return how many of ``count`` jobs were at work together; each waits until as many as expected were."""
        running, most, changed = 0, 0, threading.Condition()

        def job() -> None:
            nonlocal running, most
            with changed:
                running += 1
                most = max(most, running)
                changed.notify_all()
                changed.wait_for(lambda: most >= expected, timeout=30)
            time.sleep(0.05)  # for one too many to be seen
            with changed:
                running -= 1

        await asyncio.gather(*[s.run(job) for _ in range(count)])
        return most

    async def work(s: Scheduler) -> list[int]:
        found = [await at_once(s, 4, 2)]
        s.resize(4)
        found.append(await at_once(s, 6, 4))
        s.resize(1)
        found.append(await at_once(s, 3, 1))
        return found

    assert run(work, timeout=60) == [2, 4, 1]


class Counting:
    """Answers each image with its mean, and remembers the sizes of batches."""

    runtime, precision, batched, own_threads = "fake", "fp32", True, False

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, pixels: Any) -> Any:
        self.sizes.append(len(pixels))
        time.sleep(0.02)
        if len(pixels) > 1 and (pixels == 255).all(axis=(1, 2, 3)).any():
            raise RuntimeError("out of memory")
        if (pixels == 255).all():
            raise RuntimeError("bad")
        return pixels.mean(axis=(1, 2, 3), dtype=np.float32)[:, None]


def test_batches_gather_what_waits_and_give_each_its_own() -> None:
    session, sizes = Counting(), []
    batcher = Batcher(session, max_batch=8, observe=sizes.append)
    with ThreadPoolExecutor(20) as pool:
        given = [np.full((1, 2, 2, 3), i, np.uint8) for i in range(40)]
        answers = list(pool.map(batcher.logits, given))
    batcher.close()
    assert [float(a[0, 0]) for a in answers] == list(range(40))
    assert max(session.sizes) > 1 and max(session.sizes) <= 8 and sum(sizes) == 40


def test_a_failed_batch_is_tried_one_by_one() -> None:
    batcher = Batcher(Counting(), max_batch=8)

    def ask(value: int) -> float | str:
        try:
            return float(batcher.logits(np.full((1, 2, 2, 3), value, np.uint8))[0, 0])
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [1, 255, 3, 4, 5, 6, 7, 8]))
    batcher.close()
    assert answers == [1, "bad", 3, 4, 5, 6, 7, 8]


def test_an_idle_model_takes_a_single_image_at_once() -> None:
    batcher = Batcher(Counting(), max_batch=8)
    started = time.perf_counter()
    batcher.logits(np.zeros((1, 2, 2, 3), np.uint8))
    batcher.close()
    assert time.perf_counter() - started < 10


def test_a_batcher_that_nobody_holds_ends_and_gives_its_model_back() -> None:
    before = set(threading.enumerate())
    session = Counting()
    batcher, model = Batcher(session, max_batch=8), weakref.ref(session)
    (thread,) = set(threading.enumerate()) - before
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(batcher.logits, np.full((1, 2, 2, 3), 7, np.uint8))  # in flight, and holds it
        del batcher, session
        assert answer.result(timeout=30)[0, 0] == 7
    thread.join(30)
    gc.collect()
    assert not thread.is_alive() and model() is None


@pytest.mark.parametrize("workers", [1, 3])
def test_close_ends_the_threads(workers: int) -> None:
    before = set(threading.enumerate())  # by identity: a thread of an earlier test may end meanwhile

    async def work(s: Scheduler) -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    started = run(work, workers=workers)
    assert len(started) == workers
    assert not any(thread.is_alive() for thread in started)
