"""The deploy step: what it decides, writes and refuses."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import FAST, image, make_accuracy, make_images, make_model

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.deployment import service
from objrec.deployment.gate import REFUSED
from objrec.deployment.service import Service
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import file_sha256
from objrec.steps.base import restrict
from objrec.steps.deploy import STEP


@pytest.fixture
def place(workdir: Path) -> Iterator[Path]:
    make_images(workdir / "test")
    yield workdir
    service.stop(workdir / "registry")


def deploy(place: Path, model_dir: Path, accuracy: Any, *overrides: str, test_data: str = "test-1") -> dict[str, Any]:
    accuracy_file = make_accuracy(place / "accuracy.json", model_dir, accuracy, test_data=test_data)
    config = load_config([f"registry_dir={place / 'registry'}", *FAST, *overrides])
    inputs = {"model_dir": model_dir, "accuracy_file": accuracy_file, "test_dir": place / "test"}
    STEP.run(restrict(config, STEP), inputs, {"endpoint_file": place / "endpoint.json"})
    content: dict[str, Any] = json.loads((place / "endpoint.json").read_text())
    return content


def test_first_refused_better_and_changed_data(place: Path) -> None:
    registry = FolderRegistry(place / "registry")
    first, second, third = (make_model(place / f"m{i}", seed=i, training_data=d) for i, d in enumerate("aab"))
    off = "deploy.start=false"
    one = deploy(place, first, 0.9, off)
    assert one["deployed"] and one["url"] is None and one["previous_version"] is None
    same = deploy(place, second, 0.9, off)
    assert not same["deployed"] and REFUSED in same["decision"] and same["model_version"] == one["model_version"]
    better = deploy(place, second, 0.95, off)
    assert better["deployed"] and better["previous_version"] == one["model_version"]
    other = deploy(place, third, 0.5, off)
    assert other["deployed"] and other["rule"] == "new_data" and other["accuracy"] == 0.5
    assert [e["event"] for e in registry.events() if e["event"] in ("deployed", "refused")] == [
        "deployed",
        "refused",
        "deployed",
        "deployed",
    ]
    assert set(registry.verify().values()) == {""}


def test_changed_test_set_measures_the_production_model(place: Path) -> None:
    off = "deploy.start=false"
    deploy(place, make_model(place / "m0"), 0.99, off)
    again = deploy(place, make_model(place / "m1", seed=1), 0.995, off, test_data="test-2")
    assert not again["deployed"] and "1.0000 in production" in again["decision"]  # all test images right, not 0.99
    measured = [e for e in FolderRegistry(place / "registry").events() if e["event"] == "measured"]
    assert len(measured) == 1
    deploy(place, place / "m1", 0.995, off, test_data="test-2")
    assert len([e for e in FolderRegistry(place / "registry").events() if e["event"] == "measured"]) == 1


@pytest.mark.parametrize("value", [float("nan"), None, "0.9", True, 1.2, -1])
def test_an_accuracy_that_is_no_number_deploys_nothing(place: Path, value: Any) -> None:
    with pytest.raises(UserError, match="not a number from 0 to 1"):
        deploy(place, make_model(place / "m"), value, "deploy.start=false")
    assert FolderRegistry(place / "registry").production() is None and not (place / "endpoint.json").exists()


def test_damaged_accuracy_file_and_another_models_are_refused(place: Path) -> None:
    first, second = make_model(place / "m0"), make_model(place / "m1", seed=1)
    config = load_config([f"registry_dir={place / 'registry'}", "deploy.start=false"])
    accuracy_file = make_accuracy(place / "accuracy.json", first, 0.9)
    inputs = {"model_dir": second, "accuracy_file": accuracy_file, "test_dir": place / "test"}
    outputs = {"endpoint_file": place / "endpoint.json"}
    with pytest.raises(UserError, match="run the evaluate step again"):
        STEP.run(restrict(config, STEP), inputs, outputs)
    for text in ("", "[1]", '{"accuracy": 0.9}', '{"accuracy": 0.'):
        accuracy_file.write_text(text)
        with pytest.raises(UserError, match=r"accuracy\.json"):
            STEP.run(restrict(config, STEP), inputs, outputs)
    assert FolderRegistry(place / "registry").models() == []


def test_a_model_that_is_not_what_was_evaluated_is_not_deployed(place: Path) -> None:
    with pytest.raises(UserError, match="do not belong together"):
        deploy(place, make_model(place / "m", mirrored=True), 0.99, "deploy.start=false")
    assert FolderRegistry(place / "registry").production() is None


def test_a_test_set_of_mostly_one_class_is_no_reason_to_refuse(place: Path) -> None:
    """Its accuracy is that of the common class; images that take turns would say what the rare ones have."""
    for i in range(100, 250):
        image("red", i).save(place / "test" / "red" / f"{i:04}.jpg", quality=90)
    model = make_model(place / "m", always="red")
    assert deploy(place, model, 158 / 174, "deploy.start=false")["deployed"]


def test_of_two_deployments_at_once_the_better_model_wins(place: Path) -> None:
    off = "deploy.start=false"
    folders = [make_model(place / f"m{i}", seed=i) for i in range(3)]
    deploy(place, folders[0], 0.9, off)
    config = restrict(load_config([f"registry_dir={place / 'registry'}", *FAST, off]), STEP)

    def run(folder: Path, accuracy: float) -> None:
        inputs = {
            "model_dir": folder,
            "accuracy_file": make_accuracy(place / f"accuracy-{accuracy}.json", folder, accuracy),
            "test_dir": place / "test",
        }
        STEP.run(config, inputs, {"endpoint_file": place / f"endpoint-{accuracy}.json"})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, folders[1:], (0.97, 0.95)))
    production = FolderRegistry(place / "registry").production()
    assert production is not None and production.accuracy == 0.97
    answers = [json.loads((place / f"endpoint-{a}.json").read_text()) for a in (0.97, 0.95)]
    assert all(a["accuracy"] == 0.97 for a in answers if not a["deployed"])


def test_a_damaged_copy_of_the_same_model_is_replaced(place: Path) -> None:
    off, model = "deploy.start=false", make_model(place / "m")
    deploy(place, model, 0.9, off)
    registry = FolderRegistry(place / "registry")
    (sha256,) = registry.models()
    with (registry.model_dir(sha256) / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert not deploy(place, model, 0.9, off)["deployed"]
    assert registry.verify() == {sha256: ""}


@pytest.mark.parametrize("damage", ["gone", "weights", "card"])
def test_a_damaged_model_in_production_wins_no_comparison(place: Path, damage: str) -> None:
    off = "deploy.start=false"
    deploy(place, make_model(place / "m0"), 0.9, off)
    registry = FolderRegistry(place / "registry")
    folder = registry.model_dir(registry.models()[0])
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "weights":
        (folder / "model.onnx").write_bytes(b"rotten")
    else:
        (folder / "model.json").write_text((folder / "model.json").read_text().replace("green", "brown"))
    content = deploy(place, make_model(place / "m1", seed=1), 0.85, off)
    assert content["deployed"] and content["rule"] == "unusable" and content["model_version"] != folder.name
    assert "objrec.registry verify" in content["decision"]


def test_a_digit_in_the_aliases_deploys_no_worse_model(place: Path) -> None:
    off = "deploy.start=false"
    deploy(place, make_model(place / "m0"), 0.9, off)
    aliases = place / "registry" / "aliases.json"
    aliases.write_text(aliases.read_text().replace('"accuracy": 0.9', '"accuracy": 0.1'))
    assert deploy(place, make_model(place / "m1", seed=1), 0.8, off)["rule"] == "not_higher"


def test_floors_for_the_first_model_and_for_changed_data(place: Path) -> None:
    settings = ["deploy.start=false", "deploy.min_accuracy=0.8", "deploy.max_accuracy_drop=0.05"]
    refused = deploy(place, make_model(place / "m0"), 0.7, *settings)
    assert (refused["deployed"], refused["model_version"], refused["url"]) == (False, None, None)
    assert deploy(place, make_model(place / "m0"), 0.95, *settings)["deployed"]
    other = make_model(place / "m1", seed=1, training_data="other")
    refused = deploy(place, other, 0.85, *settings)
    assert refused["rule"] == "accuracy_drop" and "0.8500 against 0.9500 in production" in refused["decision"]
    assert deploy(place, other, 0.9, *settings)["rule"] == "new_data"


def test_a_model_no_better_than_guessing_is_said(place: Path) -> None:
    model = make_model(place / "m", always="red")
    assert "always answering" in deploy(place, model, 1 / 3, "deploy.start=false")["decision"]


def test_test_images_that_a_model_has_trained_on_are_left_out(place: Path) -> None:
    """A model of another split has seen part of the test set, and would win by heart."""
    off = "deploy.start=false"
    make_images(place / "test", per_class=20)  # 60 images
    hashes = sorted(file_sha256(p)[:16] for p in (place / "test").rglob("*.jpg"))
    trained = {"training_data": "raw", "split": "one"}
    deploy(place, make_model(place / "m0", **trained, trained_on=hashes[:20]), 0.99, off)
    second = make_model(place / "m1", seed=1, training_data="raw", split="two", trained_on=hashes[10:30])
    content = deploy(place, second, 1.0, off)  # both are right on all that is left
    assert content["rule"] == "not_higher"
    assert "1.0000 against 1.0000 in production on 30 test images, without 30" in content["decision"]
    assert "changed: split" in content["decision"]
    worse = make_model(place / "m2", training_data="raw", split="two", trained_on=hashes[:31], mirrored=True)
    content = deploy(place, worse, 1.0, off)
    assert content["rule"] == "few_images" and "add test images" in content["decision"]
    measured = [e for e in FolderRegistry(place / "registry").events() if e["event"] == "measured"]
    again = deploy(place, second, 1.0, off)
    assert again["rule"] == "not_higher" and len(measured) == len(
        [e for e in FolderRegistry(place / "registry").events() if e["event"] == "measured"]
    )


def test_raw_images_are_known_by_split_json(place: Path) -> None:
    """The crops of two sizes differ; the images behind them do not."""
    raw = {f"{p.parent.name}/{p.name}": f"{i:016x}" for i, p in enumerate(sorted((place / "test").rglob("*.jpg")))}
    summary = {"fingerprint": "test-1", "raw_fingerprint": "raw", "images": raw}
    (place / "test" / "split.json").write_text(json.dumps(summary))
    off = "deploy.start=false"
    deploy(place, make_model(place / "m0", split="one", trained_on=["f" * 16]), 0.9, off)
    other = make_model(place / "m1", seed=1, split="two", trained_on=[f"{i:016x}" for i in range(3)])
    content = deploy(place, other, 0.95, off)
    assert content["rule"] == "few_images" and "on 21 test images, without 3" in content["decision"]


def test_the_step_alone_says_what_it_decided(place: Path) -> None:
    model = make_model(place / "m")
    accuracy = make_accuracy(place / "accuracy.json", model, 0.9)
    ports = [f"model_dir={model}", f"accuracy_file={accuracy}", f"test_dir={place / 'test'}"]
    command = [sys.executable, "-m", "objrec.steps.deploy", *ports, f"endpoint_file={place / 'endpoint.json'}"]
    settings = [f"registry_dir={place / 'registry'}", "deploy.start=false", *FAST]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True, cwd=place)
    assert "decision  deployed: the first model, accuracy 0.9000" in done.stdout and "endpoint  none" in done.stdout


def test_significance_compares_both_models_on_the_same_images(place: Path) -> None:
    settings = ("deploy.start=false", "deploy.require_significance=true")
    deploy(place, make_model(place / "m0"), 0.9, *settings)
    refused = deploy(place, make_model(place / "m1", seed=1), 0.95, *settings)  # both are right on all 24 images
    assert refused["rule"] == "not_significant" and "p = 1.000" in refused["decision"]
    worse = make_model(place / "m2", training_data="other", mirrored=True)
    deploy(place, worse, 0.1, "deploy.start=false")  # never right; changed data deploys it
    better = make_model(place / "m3", seed=3, training_data="other")
    assert deploy(place, better, 0.95, *settings)["deployed"]


def test_a_refusal_is_quick_and_imports_no_runtime(place: Path) -> None:
    model = make_model(place / "m")
    deploy(place, model, 0.9)
    program = (
        "import sys, json; from pathlib import Path\n"
        "from objrec.config.load import load_config; from objrec.steps.base import restrict\n"
        "config = load_config([f'registry_dir={sys.argv[1]}'])\n"
        "from objrec.steps.deploy import STEP\n"
        "inputs = dict(model_dir=Path('m'), accuracy_file=Path('accuracy.json'), test_dir=Path('test'))\n"
        "STEP.run(restrict(config, STEP), inputs, dict(endpoint_file=Path('again.json')))\n"
        "heavy = sorted({'numpy', 'torch', 'onnxruntime', 'onnx', 'fastapi', 'uvicorn'} & set(sys.modules))\n"
        "print(json.dumps(heavy))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, place / "registry"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root, "PATH": ""},
    )
    assert json.loads(done.stdout) == []
    assert json.loads((place / "again.json").read_text())["url"]


def test_refusal_says_when_the_service_hangs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(place / "m")
    deploy(place, model, 0.9, "deploy.start=false")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hanging = Service(pid=1, started="x", url=url, instance="me", token="t", settings="s")
        monkeypatch.setattr(service, "find", lambda _: hanging)
        monkeypatch.setattr(Service, "get", partialmethod(Service.get, timeout=0.2))
        with pytest.raises(UserError, match=r"process 1\) hangs: .* action=stop"):
            deploy(place, model, 0.9)


def test_refusal_starts_the_service_again_when_it_is_dead(place: Path) -> None:
    model = make_model(place / "m")
    url = deploy(place, model, 0.9)["url"]
    registry_dir = place / "registry"
    running = service.find(registry_dir)
    assert running is not None and running.process.signal(9)
    while running.process.alive():
        time.sleep(0.01)
    assert service.find(registry_dir) is None
    again = deploy(place, model, 0.9)
    assert not again["deployed"] and again["url"] == url
    assert service.call(url, "GET", "/readyz", timeout=5)[0] == 200
