"""The models that a service holds: one that answers, one that may be on its way, one to go back to."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from objrec.config.errors import UserError
from objrec.inference.predictor import Predictor
from objrec.inference.runtime_choice import Tuning, tuned_dir
from objrec.inference.runtimes import INT8_FILE
from objrec.inference.smoke import TOLERANCE, Smoke, smoke_file
from objrec.model_registry.records import Record
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.serving.metrics import Metrics
from objrec.serving.scheduler import Batcher
from objrec.serving.settings import ServiceSettings
from objrec.system.cores import available_cores
from objrec.system.files import file_sha256
from objrec.system.reading import Stamp, stamp_of

logger = logging.getLogger("objrec.serving")
SAMPLE = "sample"  # the source whose images are drawn by the program
EXAMPLES = 6
KEPT = 3  # production, previous (so that a rollback is a change of a pointer), and one on its way


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded, warm and has reproduced its smoke answers."""

    predictor: Predictor
    record: Record
    accuracy_drop: float | None = None  # of a lower precision, as measured on the test set
    examples: Sequence[bytes] = ()  # test images that the page offers
    since: float = field(default_factory=time.time)

    @property
    def version(self) -> str:
        return self.predictor.card.sha256


class ModelManager:
    """Follows the registry's production alias, or holds one model folder.

    The alias is the truth: ``follow`` loads what it names, beside the model that serves, and moves ``current`` in one
    assignment when the new one is ready. A request keeps the model that it started with.
    """

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, *, taken_up: Callable[[Loaded], None] = lambda _: None
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self._taken_up = taken_up
        self.current: Loaded | None = None
        self.problem: str | None = None  # why the alias could not be followed
        self._warm: OrderedDict[str, Loaded] = OrderedDict()
        self._registry = FolderRegistry(Path(settings.registry_dir))
        self._lock = threading.Lock()
        self._seen: Stamp | None = None

    def changed(self) -> bool:
        """Whether the aliases were written since they were last followed; costs one stat."""
        try:
            status = os.stat(self._registry.root / "aliases.json")  # noqa: PTH116
        except OSError:
            return False
        return stamp_of(status) != self._seen

    def prepare(self, sha256: str) -> Loaded:
        """Load, warm and smoke-test a registered model without serving it. Raises UserError."""
        with self._lock:
            return self._prepare(sha256)

    def follow(self) -> Loaded:
        """Serve what the production alias names. Raises UserError and goes on serving the old model when it cannot."""
        with self._lock:
            try:
                wanted = self._wanted()
            except Exception as error:
                self.problem = str(error)
                self.metrics.swaps.labels("failed").inc()
                logger.error("model not taken up", extra={"fields": {"reason": self.problem}})
                raise
            before, self.current, self.problem = self.current, wanted, None
            session = wanted.predictor.session
            if before is None or before.predictor is not wanted.predictor:
                self._taken_up(wanted)
                self.metrics.serving(wanted.version, session.runtime, session.precision, wanted.record.accuracy)
                change = {"model_version": wanted.version, "before": before.version if before else None}
                logger.info("serving", extra={"fields": change})
            return wanted

    def _wanted(self) -> Loaded:
        if self.settings.model_dir is not None:
            if self.current is None:
                return self._load(Path(self.settings.model_dir), None)
            return self.current
        try:
            status = os.stat(self._registry.root / "aliases.json")  # noqa: PTH116
            self._seen = stamp_of(status)  # before reading: a write in between is seen next time
        except OSError:
            self._seen = None
        aliases = self._registry.aliases()
        if "production" not in aliases:
            raise UserError(f"no model in {self._registry.root} is in production: run python -m objrec.pipeline first")
        record = aliases["production"]
        loaded = self._prepare(record.sha256)
        loaded = replace(loaded, record=record)
        keep = {r.sha256 for r in aliases.values()}
        for sha256 in [s for s in self._warm if s not in keep]:
            del self._warm[sha256]
        return loaded

    def _prepare(self, sha256: str) -> Loaded:
        if sha256 in self._warm:
            self._warm.move_to_end(sha256)
            return self._warm[sha256]
        self._registry.check(sha256)  # every file, against what was registered
        loaded = self._load(self._registry.model_dir(sha256), self._registry.records().get(sha256))
        self._warm[sha256] = loaded
        while len(self._warm) > KEPT:
            oldest = next(s for s in self._warm if self.current is None or s != self.current.version)
            del self._warm[oldest]
        return loaded

    def _load(self, folder: Path, record: Record | None) -> Loaded:
        started = time.perf_counter()
        predictor, accuracy_drop = self._open(folder)
        card = predictor.card
        smoke = Smoke.load(smoke_file(self._registry.root, card.sha256))
        precision = predictor.session.precision
        if smoke is not None and (worst := smoke.difference(predictor)) > TOLERANCE[precision]:
            raise UserError(
                f"model {card.sha256[:12]} on {predictor.session.runtime} ({precision}) differs by {worst:.3f} in a "
                "probability from what it answered before deployment: it is not served"
            )
        record = record or Record(sha256=card.sha256, training_data_fingerprint=card.training_data_fingerprint)
        seconds = round(time.perf_counter() - started, 3)
        logger.info("loaded", extra={"fields": {"model_version": card.sha256, "seconds": seconds}})
        return Loaded(predictor, record, accuracy_drop, examples=self._examples(card, smoke))

    def _examples(self, card: ModelCard, smoke: Smoke | None) -> Sequence[bytes]:
        """Return the test images that the page may show: of others than the sample they may be private."""
        shown = self.settings.examples
        if smoke is None or not (card.sources == [SAMPLE] if shown == "auto" else shown):
            return ()
        return list(smoke.images)[:EXAMPLES]

    def _open(self, folder: Path) -> tuple[Predictor, float | None]:
        settings, accuracy_drop = self.settings, None
        runtime: str = settings.runtime
        precision: str = settings.precision
        int8 = None
        card = ModelCard.load(folder)
        place = tuned_dir(self._registry.root, card.sha256)
        found = Tuning.load(place)
        if found is not None:
            chosen = found.choose(runtime, precision)
            runtime, precision, accuracy_drop = chosen.runtime, chosen.precision, chosen.accuracy_drop
        elif precision not in ("auto", "fp32"):
            raise UserError(
                f"serve.precision={precision}: what model {card.sha256[:12]} loses by it was not measured on this "
                "machine: deploy it here with this setting, or set serve.precision=fp32"
            )
        if precision == "int8":
            int8 = place / INT8_FILE
            if not int8.is_file() or file_sha256(int8) != (found and found.int8_sha256):
                raise UserError(f"{int8} is missing or damaged: deploy the model again, or set serve.precision=fp32")
        workers = settings.workers or available_cores()
        predictor = Predictor.load(
            folder,
            runtime="onnxruntime" if runtime == "auto" else runtime,
            precision="fp32" if precision == "auto" else precision,
            int8=int8,
            threads=1 if workers > 1 else 0,
            workers=workers,
            max_pixels=settings.max_pixels,
            verify=settings.model_dir is not None,  # the registry has checked its own
        )
        if predictor.session.batched:
            batcher = Batcher(predictor.session, max_batch=settings.max_batch, observe=self.metrics.batches.observe)
            predictor = replace(predictor, session=batcher)
        return predictor, accuracy_drop
