"""The deploy step: register the model, ask the gate, move the endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from objrec.config.environment import AZURE, SERVE_KEY
from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.models.card import ModelCard
from objrec.pipeline.step import Port, make_step
from objrec.registry.gate import Decision, decide, p_better
from objrec.registry.records import Accuracy, Record
from objrec.registry.store import FolderRegistry, write_atomically
from objrec.serving.service import Service


@make_step(
    name="deploy",
    cached=False,
    inputs=(Port(name="model_dir"), Port(name="accuracy_file", kind="file"), Port(name="test_dir")),
    outputs=(Port(name="endpoint_file", kind="file"),),
    reads=(
        "deploy",
        "serve",
        "images",
        "ingest.allow_private_addresses",
        "ingest.contact",
        "registry_dir",
        "azure",
    ),
    secrets=(SERVE_KEY, *AZURE),
    libraries=("onnxruntime",),
)
def STEP(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Deploy the model if it is the first, its training data changed, or its accuracy is higher."""
    accuracy = Accuracy.load(inputs["accuracy_file"])
    card = ModelCard.load(inputs["model_dir"])
    if accuracy.model_sha256 != card.sha256:
        raise UserError(
            f"{inputs['accuracy_file']} is of model {accuracy.model_sha256[:12]}, "
            f"{inputs['model_dir']} is {card.sha256[:12]}: run the evaluate step again"
        )
    record = Record(
        sha256=card.sha256,
        training_data_fingerprint=card.training_data_fingerprint,
        accuracy=accuracy.accuracy,
        test_data_fingerprint=accuracy.test_data_fingerprint,
        num_images=accuracy.num_images,
    )
    if config.deploy.target == "azure":
        from objrec.cloud.deployment import deploy

        write_atomically(outputs["endpoint_file"], json.dumps(deploy(config, record, inputs), indent=2) + "\n")
        return
    registry = FolderRegistry(Path(config.registry_dir).resolve())
    with registry.deploying():
        _decide_and_deploy(config, registry, record, inputs, outputs["endpoint_file"])


def _decide_and_deploy(
    config: Config, registry: FolderRegistry, record: Record, inputs: Mapping[str, Path], endpoint_file: Path
) -> None:
    _mend(registry, record, inputs["model_dir"])
    trial = _Trial(registry, inputs["model_dir"], inputs["test_dir"], config.images.max_pixels)
    decision = decide(
        record,
        registry,
        remeasure=trial.remeasure(record),
        min_improvement=config.deploy.min_improvement,
        p_value=trial.p_value if config.deploy.require_significance else None,
        significance_level=config.deploy.significance_level,
    )
    if decision.deploy:
        last, service = _deploy(config, registry, record, inputs)
    else:
        last, service = _stay(config, registry, record, decision)
    _write(endpoint_file, registry, decision, last, service)


def _mend(registry: FolderRegistry, record: Record, model_dir: Path) -> None:
    """Where the model in production is this very one and its copy is damaged, replace the copy."""
    current = registry.production()
    if current is None or current.sha256 != record.sha256:
        return
    try:
        registry.check(record.sha256)
    except UserError:
        registry.add(model_dir, record)


def _deploy(
    config: Config, registry: FolderRegistry, record: Record, inputs: Mapping[str, Path]
) -> tuple[Record | None, Service | None]:
    from objrec.serving import probe
    from objrec.serving.rollout import roll_out

    place = registry.add(inputs["model_dir"], record)
    probe.ask(
        "try",
        model_dir=place,
        test_dir=inputs["test_dir"].resolve(),
        registry_dir=registry.root,
        accuracy=record.accuracy,
        runtime=config.serve.runtime,
        precision=config.serve.precision,
        workers=config.serve.workers,
        max_accuracy_drop=config.serve.max_accuracy_drop,
        max_pixels=config.images.max_pixels,
    )
    return roll_out(registry, record, event="deployed", start=_settings(config, registry))


def _stay(
    config: Config, registry: FolderRegistry, record: Record, decision: Decision
) -> tuple[Record | None, Service | None]:
    from objrec.serving import service

    registry.log("refused", record=record.model_dump(), reason=decision.reason)
    settings = _settings(config, registry)
    running = service.find(registry.root)
    if running is None and settings is not None:
        running = service.ensure_started(settings)  # the URL that is printed answers
    elif running is not None:
        try:
            running.get("/livez")
        except OSError:
            raise UserError(
                f"the service of {registry.root} (process {running.pid}) hangs: python -m objrec.serve action=stop "
                "ends it, then run this step again"
            ) from None
    return registry.aliases().get("previous"), running


def _settings(config: Config, registry: FolderRegistry):  # type: ignore[no-untyped-def]
    from objrec.serving.settings import Settings

    return Settings.of(config, registry_dir=str(registry.root)) if config.deploy.start else None


def _write(
    path: Path, registry: FolderRegistry, decision: Decision, last: Record | None, service: Service | None
) -> None:
    serving = registry.production()
    assert serving is not None
    content = {
        "url": service.url if service is not None else None,
        "deployed": decision.deploy,
        "decision": decision.reason,
        "rule": decision.rule,
        "model_version": serving.sha256,
        "accuracy": serving.accuracy,
        "previous_version": last.sha256 if last is not None else None,
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")


class _Trial:
    """Measurements that a decision may need; each starts a process, so none is made before it is asked for."""

    def __init__(self, registry: FolderRegistry, model_dir: Path, test_dir: Path, max_pixels: int) -> None:
        self._registry, self._model_dir, self._test_dir = registry, model_dir.resolve(), test_dir.resolve()
        self._max_pixels = max_pixels

    def right(self, model_dir: Path) -> list[bool]:
        from objrec.serving import probe

        found: list[bool] = probe.ask(
            "right", model_dir=model_dir, test_dir=self._test_dir, max_pixels=self._max_pixels
        )
        return found

    def remeasure(self, candidate: Record):  # type: ignore[no-untyped-def]
        """Return a function that measures the model in production on the candidate's test set, and remembers it."""

        def measure(current: Record) -> Record:
            for event in reversed(self._registry.events()):
                known = event.get("record")
                if (
                    event.get("event") == "measured"
                    and isinstance(known, dict)
                    and known.get("sha256") == current.sha256
                    and known.get("test_data_fingerprint") == candidate.test_data_fingerprint
                ):
                    return Record.model_validate(known)
            try:
                right = self.right(self._registry.model_dir(current.sha256))
            except UserError as error:
                raise UserError(
                    f"the model in production cannot be measured on the new test set: {error}; promote another one, or "
                    f"delete {self._registry.root / 'aliases.json'} to deploy as if for the first time"
                ) from None
            record = current.model_copy(
                update={
                    "accuracy": sum(right) / len(right),
                    "num_images": len(right),
                    "test_data_fingerprint": candidate.test_data_fingerprint,
                }
            )
            self._registry.log("measured", record=record.model_dump())
            return record

        return measure

    def p_value(self, candidate: Record, current: Record) -> float:
        return p_better(self.right(self._model_dir), self.right(self._registry.model_dir(current.sha256)))


if __name__ == "__main__":
    from objrec.pipeline.command import main

    main(STEP)
