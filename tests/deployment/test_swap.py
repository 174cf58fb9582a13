"""Deployment, refusal, failure, rollback and shutdown of a live service under load: no request is lost."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import (
    FAST,
    Load,
    image,
    make_accuracy,
    make_images,
    make_model,
    post,
    put_in_registry,
    request,
    to_bytes,
)

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.deployment import service
from objrec.deployment.gate import REFUSED
from objrec.deployment.service import Service
from objrec.inference.smoke import smoke_file
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.registry import main as registry_command
from objrec.serving import app
from objrec.serving.logs import FLUSH_SECONDS
from objrec.serving.server import bind, refuse_connections
from objrec.serving.settings import ServiceSettings
from objrec.steps.base import restrict
from objrec.steps.deploy import STEP

JPEG = to_bytes(image("red", 1))


class Place:
    """A registry with a first model deployed and its service running."""

    def __init__(self, root: Path) -> None:
        self.root, self.registry = root, FolderRegistry(root / "registry")
        make_images(root / "test")
        self.first = make_model(root / "m1", seed=1)
        self.deploy(self.first, 0.9)

    def deploy(self, model_dir: Path, accuracy: float) -> dict[str, object]:
        config = load_config([f"registry_dir={self.registry.root}", *FAST])
        inputs = {
            "model_dir": model_dir,
            "accuracy_file": make_accuracy(self.root / "accuracy.json", model_dir, accuracy),
            "test_dir": self.root / "test",
        }
        STEP.run(restrict(config, STEP), inputs, {"endpoint_file": self.root / "endpoint.json"})
        content: dict[str, object] = json.loads((self.root / "endpoint.json").read_text())
        return content

    @property
    def service(self) -> Service:
        found = service.find(self.registry.root)
        assert found is not None
        return found

    def count_of(self, message: str) -> int:
        time.sleep(2 * FLUSH_SECONDS)
        return service.log_file(self.registry.root).read_text().count(f'"message": "{message}"')

    def load(self) -> Load:
        return Load(self.service.url, JPEG)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    service.stop(found.registry.root)


def test_deployment_refusal_failure_and_rollback_under_load(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first = ModelCard.load(place.first).sha256
    second_dir, broken_dir = make_model(place.root / "m2", seed=2), make_model(place.root / "m3", seed=3, nan=True)
    second = ModelCard.load(second_dir).sha256
    with place.load() as load:
        assert set(load.versions) == {first}

        better = place.deploy(second_dir, 0.95)  # a deployment
        assert better["deployed"] and better["previous_version"] == first
        assert post(place.service.url, JPEG).body["model_version"] == second  # at once, for who asks now
        load.wait_for(50)

        refused = place.deploy(place.first, 0.9)  # a refusal
        assert not refused["deployed"] and REFUSED in str(refused["decision"])
        load.wait_for(50)

        with pytest.raises(UserError, match="something else than a probability"):  # a failure
            place.deploy(broken_dir, 0.99)
        assert place.registry.production() is not None and place.registry.aliases()["production"].sha256 == second
        load.wait_for(50)

        loaded = place.count_of("loaded")
        assert registry_command(["rollback", f"registry_dir={place.registry.root}"]) == 0  # a rollback
        assert post(place.service.url, JPEG).body["model_version"] == first
        load.wait_for(50)
    assert load.failures == [] and load.refused == 0 and set(load.statuses) == {200}
    order = list(dict.fromkeys(load.versions))
    assert order == [first, second] and load.versions[-1] == first
    assert "is in production" in capsys.readouterr().out
    assert place.count_of("loaded") == loaded  # at once: the old model was kept warm
    assert request(place.service.url, "GET", "/version").body["problem"] is None


def test_a_model_that_fails_inside_the_service_changes_nothing(place: Place) -> None:
    """The probe passed, then the files rot: the service finds out while it loads, and the alias stays."""
    before = place.registry.aliases()
    second = make_model(place.root / "m2", seed=2)
    with place.load() as load, pytest.MonkeyPatch.context() as patch:

        def rot(*arguments: object, **more: object) -> dict[str, object]:
            (place.registry.model_dir(ModelCard.load(second).sha256) / "model.onnx").write_bytes(b"rotten")
            return {}

        patch.setattr("objrec.deployment.acceptance.ask", rot)
        with pytest.raises(UserError, match="damaged"):
            place.deploy(second, 0.95)
        load.wait_for(20)
    assert place.registry.aliases() == before and load.failures == [] and set(load.statuses) == {200}
    assert place.registry.events()[-1]["event"] == "failed"
    assert place.deploy(second, 0.95)["deployed"]  # what was damaged is replaced


def test_a_service_that_was_not_told_follows_the_alias_by_itself(place: Place) -> None:
    second = make_model(place.root / "m2", seed=2)
    sha256 = ModelCard.load(second).sha256
    record = place.registry.aliases()["production"].model_copy(update={"sha256": sha256})
    place.registry.add(second, record)
    with place.load() as load:
        place.registry.promote(record)
        deadline = time.monotonic() + 60
        while load.versions[-1] != sha256 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert load.versions[-1] == sha256 and load.failures == []


def test_sigterm_under_load_loses_nothing(place: Place) -> None:
    running = place.service
    with place.load() as load:
        os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while running.process.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not running.process.alive()
    assert load.failures == [] and set(load.statuses) == {200} and load.refused > 0


def test_not_ready_is_said_first_while_requests_are_still_answered(place: Place) -> None:
    running = place.service
    os.kill(running.pid, signal.SIGTERM)
    statuses = set()
    try:
        while True:
            statuses.add((request(running.url, "GET", "/readyz").status, post(running.url, JPEG).status))
    except OSError:
        pass
    assert (503, 200) in statuses


def test_connections_made_before_the_door_closes_are_kept() -> None:
    with bind("127.0.0.1", 0) as listener:
        where = listener.getsockname()
        with socket.create_connection(where, timeout=5) as made:
            refuse_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(where, timeout=0.3)
            accepted, _ = listener.accept()
            with accepted:
                made.sendall(b"hello")
                assert accepted.recv(5) == b"hello"


def test_a_model_that_cannot_be_taken_up_does_not_end_the_following(place: Place) -> None:
    second, third = make_model(place.root / "m2", seed=2), make_model(place.root / "m3", seed=3)
    records = [put_in_registry(place.registry.root, folder) for folder in (second, third)]
    smoke = smoke_file(place.registry.root, records[0].sha256)
    damaged = {"data": base64.b64encode(b"no image").decode(), "probabilities": [1, 0, 0]}
    smoke.write_text(json.dumps({"images": [damaged]}))
    first = place.service.get("/version")[1]["model_version"]
    for record, served, problem in ((records[0], first, "smoke image"), (records[1], records[1].sha256, None)):
        place.registry.promote(record)
        deadline = time.monotonic() + 60
        while True:
            said = place.service.get("/version")[1]
            if said["model_version"] == served and (problem or "") in (said["problem"] or ""):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert post(place.service.url, JPEG).body["model_version"] == served


def test_following_outlives_any_error_and_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(app, "AGAIN_SECONDS", 0.05)
    root = tmp_path / "registry"
    registry = FolderRegistry(root)
    registry.promote(put_in_registry(root, make_model(tmp_path / "m1", seed=1)))
    state = app.State(ServiceSettings.of(load_config(FAST), registry_dir=str(root)))
    state.models.follow()
    second = put_in_registry(root, make_model(tmp_path / "m2", seed=2))
    registry.promote(second)
    load, tries = state.models._load, []

    def failing_at_first(*arguments: Any) -> Any:
        tries.append(state.serving().version)
        if len(tries) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return load(*arguments)

    monkeypatch.setattr(state.models, "_load", failing_at_first)

    async def follow() -> None:
        follower = asyncio.create_task(app._follow(state))
        async with asyncio.timeout(60):
            while state.serving().version != second.sha256:
                await asyncio.sleep(0.01)
        follower.cancel()

    asyncio.run(follow())
    state.scheduler.close()
    assert len(tries) == 4 and second.sha256 not in tries and state.models.problem is None
