"""Fill every class: many images at once, decided in the order of each class's candidates."""

from __future__ import annotations

import asyncio
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

from objrec.images.decode import ImageError
from objrec.ingest.examiner import ExaminerDied, ExaminerPool
from objrec.ingest.selection import CandidateOutcome, CandidateSelection
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate, LocalSource, Source, SourceStopped
from objrec.sources.licenses import code_of
from objrec.web.download import Downloader
from objrec.web.failures import FetchError

PATIENCE: Final = 0.5  # seconds that a turn may take before replacements are begun ahead
WINDOW: Final = 512  # images of all classes together that may wait for their turn to be decided


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What is asked of an image.

    Attributes:
        excluded: URLs and sha256 (or the first 16 digits or more) of images that were taken down.
        licenses: by source name; None where any will do.
    """

    max_pixels: int
    min_size: int
    max_bytes: int
    excluded: frozenset[str]
    licenses: Mapping[str, Sequence[str] | None]

    def refusal(self, candidate: Candidate) -> tuple[str, str] | None:
        """Status and reason why a candidate need not be fetched at all, or None."""
        if candidate.problem:
            return "invalid", candidate.problem
        if candidate.url in self.excluded or candidate.landing_page in self.excluded:
            return "excluded", "listed in ingest.exclude"
        wanted = self.licenses.get(candidate.source)
        if wanted is not None and (code_of(candidate.license) or candidate.license) not in wanted:
            return "license", f"{candidate.license or 'none known'}, which is not among {', '.join(wanted)}"
        declared = [x for x in (candidate.width, candidate.height) if isinstance(x, int) and x > 0]
        if len(declared) == 2 and min(declared) < self.min_size:
            return "too_small", f"{declared[0]} x {declared[1]} pixels by the source's account"
        return None

    def excludes(self, sha256: str) -> bool:
        return any(len(e) >= 16 and sha256.startswith(e.lower()) for e in self.excluded)


class Acquire(Protocol):
    """Turns a candidate into an outcome. Never raises for what a candidate is.

    Attributes:
        ahead: replacements may be begun before it is known that they are needed.
    """

    ahead: bool

    def __call__(self, candidate: Candidate) -> Coroutine[Any, Any, CandidateOutcome]: ...


class LocalAcquire:
    """Reads from the source itself; good images go to the data set, also some that are not kept in the end.

    Args:
        threads: read from the source.
    """

    def __init__(self, source: LocalSource, demands: Demands, examiners: ExaminerPool, threads: Executor) -> None:
        self._source, self._demands, self._examiners, self._threads = source, demands, examiners, threads
        self.ahead = False

    async def __call__(self, candidate: Candidate) -> CandidateOutcome:
        demands = self._demands
        if refused := demands.refusal(candidate):
            return CandidateOutcome(candidate=candidate, status=refused[0], reason=refused[1])
        read = functools.partial(self._source.read, candidate, max_bytes=demands.max_bytes)
        await self._examiners.room()
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._threads, read)
            image = await self._examiners.examine("target", candidate.class_name, data)
        except ImageError as error:
            return CandidateOutcome(candidate=candidate, status=error.status, reason=error.reason)
        except ExaminerDied as died:
            return CandidateOutcome(candidate=candidate, status="corrupt", reason=str(died))
        if demands.excludes(image.sha256):
            return CandidateOutcome(candidate=candidate, status="excluded", reason="listed in ingest.exclude")
        return CandidateOutcome(candidate=candidate, image=image, exact=True)


class WebAcquire:
    """Downloads, unless the store knows what came of the URL.

    Args:
        examiners: their store is this one.
        refresh: what failed for a passing reason is tried again.
    """

    def __init__(
        self, downloader: Downloader, store: WebStore, demands: Demands, examiners: ExaminerPool, *, refresh: bool
    ) -> None:
        self._downloader, self._store, self._demands, self._examiners = downloader, store, demands, examiners
        self._refresh = refresh
        self.ahead = True
        self._running: dict[str, asyncio.Task[CandidateOutcome]] = {}

    async def __call__(self, candidate: Candidate) -> CandidateOutcome:
        if refused := self._demands.refusal(candidate):
            return CandidateOutcome(candidate=candidate, status=refused[0], reason=refused[1])
        if (task := self._running.get(candidate.url)) is None:  # two classes may be offered one URL at the same time
            task = self._running[candidate.url] = asyncio.create_task(self._fetch(candidate))
            task.add_done_callback(lambda _: self._running.pop(candidate.url, None))
        found = await asyncio.shield(task)
        return self._judge(
            CandidateOutcome(candidate=candidate, image=found.image, status=found.status, reason=found.reason)
        )

    async def cancel(self) -> None:
        """End downloads that nobody waits for any more."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _fetch(self, candidate: Candidate) -> CandidateOutcome:
        known = self._store.recall(candidate, retry_transient=self._refresh)
        if known is not None:
            image = known.image
            if image is None or self._demands.excludes(image.sha256):
                return known
            if await asyncio.to_thread(self._store.has, image.sha256):
                return known
        await self._examiners.room()
        try:
            data = await self._downloader.fetch(candidate.url)
            image = await self._examiners.examine("store", candidate.url, data)  # which records what came of it
        except ImageError as error:
            return CandidateOutcome(candidate=candidate, status=error.status, reason=error.reason)
        except FetchError as error:
            status, reason, transient = error.status, error.reason, error.transient
        except ExaminerDied as died:
            status, reason, transient = "corrupt", str(died), True
        else:
            return CandidateOutcome(candidate=candidate, image=image)
        self._store.record(candidate.url, status=status, reason=reason, transient=transient)
        return CandidateOutcome(candidate=candidate, status=status, reason=reason)

    def _judge(self, outcome: CandidateOutcome) -> CandidateOutcome:
        """Apply what may have changed since an image was fetched."""
        image = outcome.image
        if image is None:
            return outcome
        status, reason = "ok", None
        if self._demands.excludes(image.sha256):
            self._store.forget(image.sha256)
            status, reason = "excluded", "listed in ingest.exclude"
        elif min(image.width, image.height) < self._demands.min_size:
            status, reason = "too_small", f"{image.width} x {image.height} pixels"
        elif image.width * image.height > self._demands.max_pixels:
            status, reason = "too_large", f"{image.width} x {image.height} pixels"
        elif image.size > self._demands.max_bytes:
            status, reason = "too_large", f"{image.size} bytes"
        return CandidateOutcome(candidate=outcome.candidate, image=image, status=status, reason=reason)


Offer = tuple[Candidate, Acquire]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A candidate that is being acquired."""

    offer: Offer
    task: asyncio.Task[CandidateOutcome]


@dataclass(slots=True)
class _Class:
    """Where a class stands.

    Attributes:
        offers: what is left of its candidates.
        exhausted: there are no more.
        late: its time is up.
    """

    name: str
    offers: Iterator[Offer]
    exhausted: bool = False
    late: bool = False


class Collector:
    """Runs the classes side by side.

    Args:
        selection: takes the outcomes.
        offers: gives a class's candidates in order, each with what acquires it; iterated in threads.
        class_timeout: seconds after which a class makes do with what it has.
        progress: called after each decision.
    """

    def __init__(
        self,
        selection: CandidateSelection,
        offers: Mapping[str, Iterator[Offer]],
        *,
        class_timeout: float,
        progress: Callable[[str], None],
    ) -> None:
        self._selection, self._progress = selection, progress
        self._classes = [_Class(name, iterator) for name, iterator in offers.items()]
        self._deadline = time.monotonic() + class_timeout
        self._window = max(8, WINDOW // len(self._classes))
        self._threads = ThreadPoolExecutor(min(32, len(self._classes)), thread_name_prefix="offers")

    async def run(self) -> set[str]:
        """Fill the classes; return the names of those whose time ran out.

        Rounds: an image that a later class also claims is taken from an earlier one, which then goes on.
        """
        try:
            while behind := [c for c in self._classes if self._wants(c)]:
                async with asyncio.TaskGroup() as group:
                    for state in behind:
                        group.create_task(self._fill(state))
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from problems
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
        return {c.name for c in self._classes if c.late}

    def _wants(self, state: _Class) -> bool:
        return not state.exhausted and not state.late and self._selection.missing(state.name) > 0

    async def _fill(self, state: _Class) -> None:
        queue: deque[_Begun] = deque()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                while self._selection.missing(state.name) > 0:
                    await self._launch(state, queue, spare=0.0)
                    if not queue:
                        return
                    if not queue[0].task.done():
                        done, _ = await asyncio.wait([queue[0].task], timeout=PATIENCE)
                        if not done and queue[-1].offer[1].ahead:
                            await self._launch(state, queue, spare=self._failed_share(state.name))
                    self._selection.add(await queue[0].task)
                    queue.popleft()
                    self._progress(state.name)
        except TimeoutError:
            state.late = True
        finally:
            for begun in queue:
                begun.task.cancel()
            await asyncio.gather(*(b.task for b in queue), return_exceptions=True)
            if queue:  # begun ahead and not needed: should the class want more, it begins with these
                state.offers = itertools.chain([b.offer for b in queue], state.offers)
                state.exhausted = False

    def _failed_share(self, class_name: str) -> float:
        counts = self._selection.statuses(class_name)
        return 1 - (counts.get("kept", 0) + 1) / (sum(counts.values()) + 2)

    async def _launch(self, state: _Class, queue: deque[_Begun], *, spare: float) -> None:
        """Begin as many as are missing, and a share more: the replacements for those that may fail."""
        missing = self._selection.missing(state.name)
        room = min(missing + math.ceil(missing * spare), self._window) - len(queue)
        if room <= 0 or state.exhausted or (missing > room and len(queue) > 0.8 * self._window):
            return  # a full window is filled up in strides: each takes a thread
        loop = asyncio.get_running_loop()
        offered = await loop.run_in_executor(self._threads, lambda: list(itertools.islice(state.offers, room)))
        state.exhausted = len(offered) < room
        for offer in offered:
            candidate, acquire = offer
            queue.append(_Begun(offer, asyncio.create_task(acquire(candidate))))


def offers_of(
    class_name: str, sources: Sequence[tuple[Source, Acquire]], stopped: Callable[[str, str], None]
) -> Iterator[Offer]:
    """Yield a class's candidates from each source in turn, each URL once.

    Args:
        stopped: told the name of a source and why it gave up; the next one then takes over.
    """
    seen: set[str] = set()
    for source, acquire in sources:
        try:
            for candidate in source.candidates(class_name):
                if candidate.url not in seen:
                    seen.add(candidate.url)
                    yield candidate, acquire
        except SourceStopped as stop:
            stopped(source.name, str(stop))
