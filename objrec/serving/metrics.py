"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

import functools
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """One instance a service, with a registry of its own. Labels come from routes and class names: bounded."""

    def __init__(self, pending: Callable[[], int]) -> None:
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self.requests = Counter("objrec_requests", "Requests answered.", ["path", "status"], registry=r)
        self.seconds = Histogram("objrec_request_seconds", "Arrival to answer.", ["path"], registry=r, buckets=SECONDS)
        self.stages = Histogram(
            "objrec_stage_seconds", "Of an image: wait, decode, model.", ["stage"], registry=r, buckets=SECONDS
        )
        self.batches = Histogram(
            "objrec_batch_size",
            "Images that went through the model together.",
            registry=r,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        Gauge("objrec_pending", "Images waiting or being worked on.", registry=r).set_function(pending)
        self.predictions = Summary(
            "objrec_confidence",
            "Probability of the first label; its mean and count by label show drift.",
            ["label"],
            registry=r,
        )
        self.swaps = Counter("objrec_model_loads", "Times that the service took up a model.", ["outcome"], registry=r)
        self.model = Gauge(
            "objrec_model", "The model that serves.", ["model_version", "runtime", "precision"], registry=r
        )
        self.accuracy = Gauge("objrec_model_accuracy", "Of the model that serves, on its test set.", registry=r)

        # each combination of labels is looked up once: that takes longer than to count
        self._requests, self._seconds = functools.cache(self.requests.labels), functools.cache(self.seconds.labels)
        self._stages, self._predictions = functools.cache(self.stages.labels), functools.cache(self.predictions.labels)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        self._requests(path, status).inc()
        self._seconds(path).observe(seconds)

    def observe_stages(self, **seconds: float) -> None:
        for stage, taken in seconds.items():
            self._stages(stage).observe(taken)

    def observe_prediction(self, label: str, probability: float) -> None:
        self._predictions(label).observe(probability)

    def serving(self, version: str, runtime: str, precision: str, accuracy: float | None) -> None:
        self.model.clear()
        self.model.labels(version, runtime, precision).set(1)
        self.accuracy.set(float("nan") if accuracy is None else accuracy)
        self.swaps.labels("ok").inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
