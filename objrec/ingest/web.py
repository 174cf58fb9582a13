"""What the web sources of one run share: the HTTP client, the store, and the memory of what was offered."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from objrec.config.load import dump
from objrec.config.schema import Config
from objrec.images.budget import MemoryShare
from objrec.images.decode import FORMATS
from objrec.ingest.api import StoredApi
from objrec.ingest.collect import Demands, WebAcquire
from objrec.ingest.examiner import Examiner, ExaminerPool
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate, Source
from objrec.sources.build import host_limits
from objrec.system.cores import available_cores
from objrec.web.download import Downloader, DownloadLimits


class Web:
    """Use as an async context manager.

    Args:
        examiners: of ``examiner_of(config, ...)``.
    """

    def __init__(self, config: Config, examiners: ExaminerPool) -> None:
        settings = config.ingest
        self._refresh, self._examiners = settings.refresh, examiners
        limits = DownloadLimits(
            timeout=settings.timeout,
            max_bytes=settings.max_bytes,
            retries=settings.retries,
            max_wait=settings.max_wait,
            connections=settings.connections,
            connections_per_host=settings.connections_per_host,
            host_rate=settings.host_rate,
            robots=settings.robots,
            allow_private_addresses=settings.allow_private_addresses,
        )
        self._downloader = Downloader(limits, contact=settings.contact, host_limits=host_limits(config.source))
        folder, sizes = _store_of(config)
        rules = (limits.robots, limits.allow_private_addresses, limits.timeout, limits.retries, limits.max_wait)
        self.store = WebStore(folder, limits=sizes, access=json.dumps([*rules, settings.contact]))
        identity = json.dumps([dump(config.source), config.source.endpoint], sort_keys=True, default=str)
        self._identity = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._acquires: list[WebAcquire] = []

    async def __aenter__(self) -> Self:
        await self._downloader.__aenter__()
        loop = asyncio.get_running_loop()
        self.api = StoredApi(self._downloader, self.store, loop, refresh=self._refresh)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.api.close()
        await self.settle()
        await self._downloader.__aexit__()
        self.store.close()

    async def settle(self) -> None:
        """End what is being downloaded and wanted by nobody."""
        await asyncio.gather(*(a.cancel() for a in self._acquires))

    def acquire(self, demands: Demands) -> WebAcquire:
        """Return what downloads the candidates."""
        made = WebAcquire(self._downloader, self.store, demands, self._examiners, refresh=self._refresh)
        self._acquires.append(made)
        return made

    def remembering(self, source: Source) -> Source:
        """Return ``source`` such that what it offered in earlier runs comes first, in the order of that time.

        So a refreshed data set keeps its images and gains others, whatever order the service returns them in now.
        A source that knows its classes is a list, which is its own memory.
        """
        if source.class_names() is not None:
            return source
        return _Remembering(source, self.store, f"{self._identity}/{source.name}")


def examiner_of(config: Config, target: Path) -> Examiner:
    """What the examiners of a run do."""
    folder, limits = _store_of(config)
    return Examiner(
        max_pixels=config.images.max_pixels,
        min_size=config.ingest.min_size,
        target=str(target),
        store=str(folder),
        limits=limits,
        share=MemoryShare.among(available_cores()),
    )


def _store_of(config: Config) -> tuple[Path, str]:
    """Folder and limits of the store."""
    sizes = config.images.max_pixels, config.ingest.max_bytes, config.ingest.min_size
    limits = "/".join(map(str, [*sizes, *FORMATS]))
    return Path(config.cache_dir) / "downloads", limits


class _Remembering:
    def __init__(self, source: Source, store: WebStore, key: str) -> None:
        self._source, self._store, self._key = source, store, key
        self.name = source.name

    def class_names(self) -> Sequence[str] | None:
        return self._source.class_names()

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        yield from self._store.offered(self._key, class_name)
        for candidate in self._source.candidates(class_name):
            self._store.offer(self._key, candidate)
            yield candidate
