"""The models that a service holds: one that answers, one that may be on its way, one to go back to."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from objrec.config.errors import UserError
from objrec.registry.records import Record
from objrec.registry.store import FolderRegistry
from objrec.serving.predictor import Predictor
from objrec.serving.settings import Settings
from objrec.serving.smoke import TOLERANCE, Smoke, smoke_file

logger = logging.getLogger("objrec.serving")
KEPT = 3  # production, previous (so that a rollback is a change of a pointer), and one on its way


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded, warm and has reproduced its smoke answers."""

    predictor: Predictor
    record: Record
    since: float = field(default_factory=time.time)

    @property
    def version(self) -> str:
        return self.predictor.card.sha256


class LiveModels:
    """Follows the registry's production alias, or holds one model folder.

    The alias is the truth: ``follow`` loads what it names, beside the model that serves, and moves ``current`` in one
    assignment when the new one is ready. A request keeps the model that it started with.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.current: Loaded | None = None
        self.problem: str | None = None  # why the alias could not be followed
        self._warm: OrderedDict[str, Loaded] = OrderedDict()
        self._registry = FolderRegistry(Path(settings.registry_dir))
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None

    def changed(self) -> bool:
        """Whether the aliases were written since they were last followed; costs one stat."""
        try:
            status = os.stat(self._registry.root / "aliases.json")  # noqa: PTH116
        except OSError:
            return False
        return (status.st_mtime_ns, status.st_ino) != self._seen

    def prepare(self, sha256: str) -> Loaded:
        """Load, warm and smoke-test a registered model without serving it. Raises UserError."""
        with self._lock:
            return self._prepare(sha256)

    def follow(self) -> Loaded:
        """Serve what the production alias names. Raises UserError and goes on serving the old model when it cannot."""
        with self._lock:
            try:
                self.current = self._wanted()
                self.problem = None
            except Exception as error:
                self.problem = str(error)
                raise
            return self.current

    def _wanted(self) -> Loaded:
        if self.settings.model_dir is not None:
            if self.current is None:
                return self._load(Path(self.settings.model_dir), None)
            return self.current
        try:
            status = os.stat(self._registry.root / "aliases.json")  # noqa: PTH116
            self._seen = (status.st_mtime_ns, status.st_ino)  # before reading: a write in between is seen next time
        except OSError:
            self._seen = None
        aliases = self._registry.aliases()
        if "production" not in aliases:
            raise UserError(f"no model in {self._registry.root} is in production: run python -m objrec.pipeline first")
        record = aliases["production"]
        loaded = self._prepare(record.sha256)
        loaded = Loaded(loaded.predictor, record)
        keep = {r.sha256 for r in aliases.values()}
        for sha256 in [s for s in self._warm if s not in keep]:
            del self._warm[sha256]
        return loaded

    def _prepare(self, sha256: str) -> Loaded:
        if sha256 in self._warm:
            self._warm.move_to_end(sha256)
            return self._warm[sha256]
        folder = self._registry.model_dir(sha256)
        loaded = self._load(folder, self._registry.records().get(sha256))
        self._warm[sha256] = loaded
        while len(self._warm) > KEPT:
            oldest = next(s for s in self._warm if self.current is None or s != self.current.version)
            del self._warm[oldest]
        return loaded

    def _load(self, folder: Path, record: Record | None) -> Loaded:
        import numpy as np

        started = time.perf_counter()
        settings = self.settings
        runtime = "onnxruntime" if settings.runtime == "auto" else settings.runtime
        workers = settings.workers or cores()
        predictor = Predictor.load(
            folder,
            runtime=runtime,
            precision=settings.precision,
            threads=1 if workers > 1 else 0,
            workers=workers,
            max_pixels=settings.max_pixels,
        )
        size = predictor.card.input_size
        predictor.logits(np.zeros((1, size, size, 3), dtype=np.uint8))  # warm: the first run allocates
        smoke = Smoke.load(smoke_file(self._registry.root, predictor.card.sha256))
        if smoke is not None and (worst := smoke.difference(predictor)) > TOLERANCE[settings.precision]:
            raise UserError(
                f"model {predictor.card.sha256[:12]} on {runtime} ({settings.precision}) differs by {worst:.3f} in a "
                "probability from what it answered before deployment: it is not served"
            )
        card = predictor.card
        record = record or Record(sha256=card.sha256, training_data_fingerprint=card.training_data_fingerprint)
        logger.info("loaded", extra={"fields": {"model": card.sha256, "seconds": time.perf_counter() - started}})
        return Loaded(predictor, record)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
