"""The deploy step: register the model, ask the gate, move the endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from objrec.config.environment import AZURE, SERVE_KEY
from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.deployment.comparison import Comparison
from objrec.deployment.gate import Decision, Rules, Standing, Unusable, decide, warn_if_trivial
from objrec.deployment.service import Service
from objrec.model_registry.records import Accuracy, Record
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.steps.base import Port, make_step
from objrec.system.files import write_json


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
    record = Record.of(card, accuracy)
    if config.deploy.target == "azure":
        from objrec.cloud.deployment import deploy

        content = deploy(config, record, inputs, rules_of(config), counts_of(inputs["test_dir"]))
        write_json(outputs["endpoint_file"], content)
        return
    registry = FolderRegistry(Path(config.registry_dir).resolve())
    with registry.deploying():
        _decide_and_deploy(config, registry, record, inputs, outputs["endpoint_file"])


def _decide_and_deploy(
    config: Config, registry: FolderRegistry, record: Record, inputs: Mapping[str, Path], endpoint_file: Path
) -> None:
    current = registry.production()
    fault = registry.fault(current.sha256) if current is not None else ""
    if current is not None and current.sha256 == record.sha256 and fault:
        registry.add(inputs["model_dir"], record)  # it is this very model: its damaged copy is replaced
        fault = ""
    comparison = _comparison(config, registry, record, inputs)

    def compare(production: Record) -> Standing:
        if fault:
            raise Unusable(f"{fault}; python -m objrec.registry verify shows what is sound")
        return comparison(production)

    decision = decide(record, registry, compare=compare, rules=rules_of(config))
    decision = warn_if_trivial(decision, record.accuracy or 0.0, counts_of(inputs["test_dir"]))
    if decision.deploy:
        last, service = _deploy(config, registry, record, inputs)
    else:
        last, service = _stay(config, registry, record, decision)
    _write(endpoint_file, registry, decision, last, service)


def rules_of(config: Config) -> Rules:
    """Return what ``deploy.*`` demands of a candidate."""
    deploy = config.deploy
    return Rules(
        min_improvement=deploy.min_improvement,
        significance_level=deploy.significance_level if deploy.require_significance else None,
        min_accuracy=deploy.min_accuracy,
        max_accuracy_drop=deploy.max_accuracy_drop,
    )


def counts_of(test_dir: Path) -> dict[str, int]:
    """Return the number of test images of each class, of none where they cannot be listed."""
    from objrec.images.image_folder import count_classes

    try:
        return count_classes(test_dir)
    except UserError:
        return {}


def _comparison(config: Config, registry: FolderRegistry, record: Record, inputs: Mapping[str, Path]) -> Comparison:
    """Return the comparison of the gate; each measurement starts a process, so none is made before it is asked for."""
    test_dir = inputs["test_dir"].resolve()

    def right(model_dir: Path) -> list[bool]:
        from objrec.deployment import acceptance as probe

        found: list[bool] = probe.ask(
            "right", model_dir=model_dir, test_dir=test_dir, max_pixels=config.images.max_pixels
        )
        return found

    def files() -> list[tuple[str, Path]]:
        from objrec.inference.smoke import images_in_turns

        return images_in_turns(test_dir)

    return Comparison(
        candidate=record,
        candidate_dir=inputs["model_dir"].resolve(),
        test_dir=test_dir,
        files=files,
        place_of=lambda current: registry.model_dir(current.sha256),
        right=right,
        memory=_Memory(registry),
    )


@dataclass(frozen=True)
class _Memory:
    """Measurements in the registry's log."""

    registry: FolderRegistry

    def recall(self, sha256: str, test_data: str) -> Record | None:
        for event in reversed(self.registry.events()):
            known = event.get("record") if event.get("event") == "measured" else None
            if isinstance(known, dict) and (known.get("sha256"), known.get("test_data_fingerprint")) == (
                sha256,
                test_data,
            ):
                return Record.model_validate(known)
        return None

    def keep(self, record: Record) -> None:
        self.registry.log("measured", record=record.model_dump())


def _deploy(
    config: Config, registry: FolderRegistry, record: Record, inputs: Mapping[str, Path]
) -> tuple[Record | None, Service | None]:
    from objrec.deployment import acceptance as probe
    from objrec.deployment.rollout import roll_out

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
    from objrec.deployment import service

    registry.log("refused", record=record.model_dump(), reason=decision.reason)
    settings = _settings(config, registry) if registry.production() is not None else None
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
    from objrec.serving.settings import ServiceSettings

    return ServiceSettings.of(config, registry_dir=str(registry.root)) if config.deploy.start else None


def _write(
    path: Path, registry: FolderRegistry, decision: Decision, last: Record | None, service: Service | None
) -> None:
    serving = registry.production()  # None where the first model was refused
    content = {
        "url": service.url if service is not None else None,
        "deployed": decision.deploy,
        "decision": decision.reason,
        "rule": decision.rule,
        "model_version": serving.sha256 if serving is not None else None,
        "accuracy": serving.accuracy if serving is not None else None,
        "previous_version": last.sha256 if last is not None else None,
    }
    write_json(path, content)


def _run_and_tell(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    STEP.run(config, inputs, outputs)
    said = json.loads(outputs["endpoint_file"].read_text(encoding="utf-8"))
    print(f"decision  {said['decision']}\nendpoint  {said['url'] or 'none'}", flush=True)


if __name__ == "__main__":
    from objrec.steps.command import main

    main(replace(STEP, run=_run_and_tell))  # inside a pipeline, its summary says so
