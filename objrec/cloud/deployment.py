"""``deploy.target=azure``: register the model, ask the gate, move the managed endpoint."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objrec.cloud.endpoint import ManagedEndpoint, SmokeImage, post
from objrec.cloud.environments import ROOT, ensure_environment
from objrec.cloud.registry import AzureRegistry, model_folder, tags_of
from objrec.cloud.snapshot import snapshot_files, stage
from objrec.cloud.workspace import connect, read_workspace
from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.deployment.comparison import Comparison
from objrec.deployment.gate import Decision, Rules, decide, warn_if_trivial
from objrec.images.decode import ImageError
from objrec.model_registry.records import Record
from objrec.models.card import ModelCard

SERVED = {"max_bytes", "max_pixels", "top_k"}  # of the serve section: what azureml/score.py reads


def deploy(
    config: Config, record: Record, inputs: Mapping[str, Path], rules: Rules, counts: Mapping[str, int]
) -> dict[str, Any]:
    """Deploy when the gate says so; returns the content of ``endpoint_file``.

    Args:
        counts: the number of test images of each class.

    Raises:
        UserError: the new deployment failed; then what served before goes on serving.
    """
    client = connect(config.azure)
    name = endpoint_name(config)
    registry = AzureRegistry(client, config.azure.model_name, name)
    endpoint = ManagedEndpoint(client, name, send=post, seconds=config.azure.endpoint.request_timeout_ms / 1000)
    with tempfile.TemporaryDirectory() as scratch:
        comparison = _comparison(registry, record, inputs, config.images.max_pixels, Path(scratch))
        decision = decide(record, registry, compare=comparison, rules=rules)
    decision = warn_if_trivial(decision, record.accuracy or 0.0, counts)
    card = ModelCard.load(inputs["model_dir"])
    version = registry.register(inputs["model_dir"], record, {"git_commit": card.git_commit or "unknown"})
    before = registry.serving()
    if decision.deploy:
        _release(config, client, endpoint, record, version, inputs)
    serving = registry.serving()
    return _content(endpoint, decision, serving, before)


def endpoint_name(config: Config) -> str:
    """Return the configured name, or one that is free in the region as it follows from the workspace."""
    if config.azure.endpoint.name is not None:
        return config.azure.endpoint.name
    path = read_workspace(config.azure.config).path.lower()
    return f"objrec-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _release(
    config: Config, client: Any, endpoint: ManagedEndpoint, record: Record, version: str, inputs: Mapping[str, Path]
) -> None:
    images = smoke_images(record, inputs, config)
    created = endpoint.ensure()
    colour = endpoint.free_colour()
    settings = config.azure.endpoint
    environment = ensure_environment(
        client, f"{config.azure.environment}-scoring", ROOT / "azureml" / "environment" / "scoring"
    )
    model = f"{config.azure.model_name}:{version}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            code = stage(snapshot_files(ROOT), ROOT, Path(folder))
            previous = endpoint.roll_out(
                _deployment(config, colour, endpoint.name, model, environment, code, record),
                images,
                shares=settings.traffic,
                settle=settings.settle_seconds,
            )
    except BaseException:
        if created:  # an endpoint without a deployment would only puzzle
            client.online_endpoints.begin_delete(endpoint.name).result()
        raise
    if previous is not None and not settings.keep_previous:
        endpoint.delete(previous)


def _deployment(
    config: Config, colour: str, endpoint: str, model: str, environment: str, code: Path, record: Record
) -> Any:
    from azure.ai.ml.entities import CodeConfiguration, ManagedOnlineDeployment, OnlineRequestSettings

    settings = config.azure.endpoint
    return ManagedOnlineDeployment(
        name=colour,
        endpoint_name=endpoint,
        model=f"azureml:{model}",
        environment=f"azureml:{environment}",
        code_configuration=CodeConfiguration(code=str(code), scoring_script="azureml/score.py"),
        environment_variables={
            "OBJREC_SERVING": json.dumps(config.serve.model_dump(include=SERVED)),
            "WORKER_COUNT": str(settings.max_concurrent_requests),  # the server's processes: one request each
        },
        instance_type=settings.size,
        instance_count=settings.instances,
        request_settings=OnlineRequestSettings(
            request_timeout_ms=settings.request_timeout_ms,
            max_concurrent_requests_per_instance=settings.max_concurrent_requests,
            max_queue_wait_ms=settings.max_queue_wait_ms,
        ),
        tags={**tags_of(record), "model": model, "created_by": "objrec"},
    )


def smoke_images(record: Record, inputs: Mapping[str, Path], config: Config) -> list[SmokeImage]:
    """Return readable images of the test set, the classes taking turns, with the model's own answers.

    Raises:
        UserError: there is none, or the model is right so seldom that it cannot be the one that was evaluated.
    """
    from objrec.deployment.acceptance import check_accuracy
    from objrec.inference.predictor import Predictor
    from objrec.inference.smoke import images_in_turns

    predictor = Predictor.load(inputs["model_dir"], max_pixels=config.images.max_pixels)
    images: list[SmokeImage] = []
    right = 0
    for label, path in images_in_turns(inputs["test_dir"]):
        data = path.read_bytes()
        try:
            best, probability = predictor.predict(data, top_k=1)[0]
        except ImageError:
            continue
        right += best == label
        images.append(SmokeImage(data, best, probability))
        if len(images) == config.azure.endpoint.smoke_images:
            break
    if not images:
        raise UserError(f"{inputs['test_dir']} has no readable image to test the endpoint with")
    assert record.accuracy is not None
    check_accuracy(right, len(images), record.accuracy)
    return images


def _content(endpoint: ManagedEndpoint, decision: Decision, serving: Any, before: Any) -> dict[str, Any]:
    tags = dict(serving.tags or {}) if serving is not None else {}
    return {
        "url": endpoint.url,
        "deployed": decision.deploy,
        "decision": decision.reason,
        "rule": decision.rule,
        "model_version": tags.get("sha256"),
        "accuracy": float(tags["accuracy"]) if "accuracy" in tags else None,
        "previous_version": dict(before.tags or {}).get("sha256") if before is not None and decision.deploy else None,
        "endpoint": endpoint.name,
        "deployment": serving.name if serving is not None else None,
        "model": tags.get("model"),
    }


def _comparison(
    registry: AzureRegistry, record: Record, inputs: Mapping[str, Path], max_pixels: int, scratch: Path
) -> Comparison:
    from objrec.deployment.acceptance import right
    from objrec.inference.smoke import images_in_turns

    test_dir = inputs["test_dir"]

    def place_of(current: Record) -> Path:
        folder = scratch / current.sha256[:12]
        return model_folder(folder) if folder.exists() else registry.download(current.sha256, folder)

    return Comparison(
        candidate=record,
        candidate_dir=inputs["model_dir"],
        test_dir=test_dir,
        files=lambda: images_in_turns(test_dir),
        place_of=place_of,
        right=lambda model_dir: right(model_dir, test_dir, max_pixels=max_pixels),
    )
