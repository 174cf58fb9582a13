"""What version 0.1.0 left: its registry, model folder and run still load, verify, serve, deploy and roll back.

``fixtures/version_0_1.zip`` was written by that version: two ``test_efficientnet`` models of drawn apples and pears,
the second in production.
"""

from __future__ import annotations

import base64
import json
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objrec import registry as registry_command
from objrec.config.load import load_config
from objrec.deployment import service
from objrec.images.image_folder import list_classes
from objrec.inference.predictor import Predictor
from objrec.inference.smoke import Smoke
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.serving.settings import ServiceSettings
from objrec.steps.base import restrict
from objrec.steps.deploy import STEP as DEPLOY
from objrec.steps.evaluate import STEP as EVALUATE

OLD, NEW = "ff267c84b17a", "92f8718eb848"


@pytest.fixture
def left(workdir: Path) -> Path:
    """The unpacked fixture; the model folder has the files that the registry has of it."""
    with zipfile.ZipFile(Path(__file__).parent / "fixtures" / "version_0_1.zip") as archive:
        archive.extractall(workdir)
    (registered,) = (workdir / "registry" / "models").glob(f"{NEW}*")
    for name in ("model.onnx", "model.safetensors"):
        shutil.copyfile(registered / name, workdir / "model_dir" / name)
    return workdir


def test_the_registry_is_listed_and_sound(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry_command.main(["list", "registry_dir=registry"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [OLD, NEW]
    assert rows[0].endswith("previous") and rows[1].endswith("production") and "0.7778" in rows[1]
    assert registry_command.main(["verify", "registry_dir=registry"]) == 0
    assert capsys.readouterr().out.count("  OK") == 2


def test_the_model_folder_answers_as_it_did(left: Path) -> None:
    predictor = Predictor.load(left / "model_dir")
    (smoke_file,) = (left / "registry" / "smoke").glob(f"{NEW}*.json")
    smoke = Smoke.load(smoke_file)
    assert smoke is not None and len(smoke.images) > 1
    for image, expected in zip(smoke.images, smoke.probabilities, strict=True):
        np.testing.assert_allclose(predictor.probabilities(predictor.pixels(image)[None])[0], expected, atol=1e-4)


def test_evaluation_gives_the_accuracy_of_then(left: Path) -> None:
    outputs = {"accuracy_file": left / "accuracy.json", "report_dir": left / "report"}
    outputs["report_dir"].mkdir()
    inputs = {"model_dir": left / "model_dir", "test_dir": left / "test_dir"}
    EVALUATE.run(restrict(load_config(), EVALUATE), inputs, outputs)
    now, then = json.loads(outputs["accuracy_file"].read_text()), json.loads((left / "accuracy_file").read_text())
    for key in ("accuracy", "num_images", "test_data_fingerprint", "model_sha256"):
        assert now[key] == then[key], key


def test_the_run_names_its_steps(left: Path) -> None:
    run: dict[str, Any] = json.loads((left / "run" / "run.json").read_text())
    assert [step["name"] for step in run["steps"]] == ["ingest", "preprocess", "train", "evaluate", "deploy"]
    assert run["accuracy"] == json.loads((left / "accuracy_file").read_text())["accuracy"]


def test_the_service_rolls_back_to_the_model_before(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(["registry_dir=registry", "serve.runtime=onnxruntime"])
    started = service.ensure_started(ServiceSettings.of(config, registry_dir=str(left / "registry")))
    try:
        image = list_classes(left / "test_dir").path(0).read_bytes()
        assert ask(started.url, image)["model_version"].startswith(NEW)
        assert registry_command.main(["rollback", "registry_dir=registry"]) == 0
        assert OLD in capsys.readouterr().out
        assert ask(started.url, image)["model_version"].startswith(OLD)
    finally:
        service.stop(left / "registry")


def test_the_gate_knows_the_model_in_production(left: Path) -> None:
    assert FolderRegistry(left / "registry").production() is not None
    inputs = {"model_dir": left / "model_dir", "accuracy_file": left / "accuracy_file", "test_dir": left / "test_dir"}
    config = load_config(["registry_dir=registry", "deploy.start=false"])
    DEPLOY.run(restrict(config, DEPLOY), inputs, {"endpoint_file": left / "endpoint.json"})
    result = json.loads((left / "endpoint.json").read_text())
    assert result["deployed"] is False and "same training data, accuracy not higher" in result["decision"]
    assert result["model_version"] == ModelCard.load(left / "model_dir").sha256


def ask(url: str, image: bytes) -> dict[str, Any]:
    body = json.dumps({"data": base64.b64encode(image).decode()}).encode()
    request = urllib.request.Request(f"{url}/score", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer
