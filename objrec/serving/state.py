"""What the routes of the endpoint share."""

from __future__ import annotations

from collections.abc import Callable

from objrec.inference.runtimes import callers
from objrec.serving.memory import RequestMemory, largest_body
from objrec.serving.metrics import Metrics
from objrec.serving.model_manager import Loaded, ModelManager
from objrec.serving.request import RequestError
from objrec.serving.scheduler import Scheduler
from objrec.serving.settings import LOADING, ServiceSettings

HEAVY_PART = 3  # of the threads may be at work on very large images, so that they leave cores to the others


class State:
    """What the routes share: settings, models, threads, metrics.

    Args:
        instance, token: of a background service; the commands of this machine know the token.
        is_named: whether the state file still names this instance; see ``objrec.deployment.service``.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        instance: str = "",
        token: str = "",
        is_named: Callable[[], bool] = lambda: True,
    ) -> None:
        self.settings, self.instance, self.token = settings, instance, token
        self.is_named = is_named
        self.draining = False
        self.metrics = Metrics(lambda: self.scheduler.pending + self.heavy.pending)
        self.scheduler = Scheduler(workers=1, waiting=settings.queue, timeout=settings.timeout)
        self.heavy = Scheduler(workers=1, waiting=settings.queue, timeout=settings.timeout)  # for very large images
        size = None if settings.memory == "auto" else settings.memory
        self.memory = RequestMemory(size, max_body=largest_body(settings.max_bytes))
        self.models = ModelManager(settings, self.metrics, taken_up=self._fit)

    def _fit(self, loaded: Loaded) -> None:
        """Have as many threads as this model needs to be kept busy."""
        settings = self.settings
        workers = settings.workers or callers(loaded.predictor.session, max_batch=settings.max_batch)
        self.scheduler.resize(workers)
        self.heavy.resize(max(1, workers // HEAVY_PART))

    def is_lost(self) -> bool:
        """Whether this is a background service whose registry is gone, or names another."""
        return bool(self.instance) and not self.is_named()

    def serving(self) -> Loaded:
        """Return the model that serves. Raises RequestError 503."""
        if self.models.current is None:
            raise RequestError(503, "not_ready", self.models.problem or LOADING, retry_after=1)
        return self.models.current
