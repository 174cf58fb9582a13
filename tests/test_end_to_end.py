"""The five steps as a user runs them, with a small model: run, rerun, change, predict, serve."""

from __future__ import annotations

import base64
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from helpers.data import shared_file
from helpers.imports import HEAVY, PROBE

from objrec.runner.cache import digest_of, scan

SMALL = [
    "classes.names=[apple,pear]",
    "ingest.num_images=40",
    "preprocess.image_size=32",
    "preprocess.exact_split=true",
    "backbone.name=test_resnet",
    "train.max_epochs=2",
    "train.batch_size=8",
    "serve.runtime=onnxruntime",
]


def command(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout
    )


def last_run(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "pipeline" / "latest" / "run.json").read_text())


def statuses(folder: Path) -> list[str]:
    return [step["status"] for step in last_run(folder)["steps"]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    try:
        done = command(folder, "objrec.pipeline", *SMALL)
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        command(folder, "objrec.serve", "action=stop")


def outputs(folder: Path) -> dict[str, Path]:
    return {name: folder / path for step in last_run(folder)["steps"] for name, path in step["outputs"].items()}


def test_the_first_run_runs_everything_and_serves(project: Path) -> None:
    run = last_run(project)
    assert statuses(project) == ["ran"] * 5
    assert 0 <= run["accuracy"] <= 1 and run["endpoint_url"].startswith("http://127.0.0.1:")
    endpoint = json.loads(outputs(project)["endpoint_file"].read_text())
    assert endpoint["deployed"] is True and endpoint["url"] == run["endpoint_url"]
    assert {"url", "deployed", "decision", "model_version", "accuracy", "previous_version"} <= set(endpoint)
    accuracy = json.loads(outputs(project)["accuracy_file"].read_text())
    assert {"accuracy", "num_images", "confidence_interval", "test_data_fingerprint", "model_sha256"} <= set(accuracy)


def test_the_endpoint_predict_and_evaluate_agree(project: Path) -> None:
    url = last_run(project)["endpoint_url"]
    image = next(outputs(project)["test_dir"].glob("*/*.jpg"))
    answer = httpx.post(f"{url}/score", json={"data": base64.b64encode(image.read_bytes()).decode()}).json()
    remote = command(project, "objrec.predict", str(image), "--endpoint", url, "--json")
    local = command(project, "objrec.predict", str(image), "--model", str(outputs(project)["model_dir"]), "--json")
    said = [json.loads(done.stdout) for done in (remote, local)]
    said = [s[0] if isinstance(s, list) else s for s in said]
    assert answer["label"] == said[0]["label"] == said[1]["label"]
    assert answer["probability"] == pytest.approx(said[1]["probability"], abs=1e-4)


@pytest.mark.parametrize("cache", ["off", "disk"])
def test_the_model_is_as_accurate_on_the_decoded_store_as_on_the_files(project: Path, cache: str) -> None:
    from objrec.config.load import load_config
    from objrec.datamodules.image_folder import ImageFolderDataModule
    from objrec.models.card import ModelCard

    places = outputs(project)
    config, card = load_config([f"datamodule.cache={cache}"]), ModelCard.load(places["model_dir"])
    data = ImageFolderDataModule(
        **{name: places[name] for name in ("train_dir", "valid_dir", "test_dir")},
        preprocessing=card.preprocessing,
        batch_size=3,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=0,
        max_pixels=10**6,
        cache_dir=project / "stores",
    )
    model = onnxruntime.InferenceSession(places["model_dir"] / "model.onnx", providers=["CPUExecutionProvider"])
    said, right = [], []
    for batch in data.test_dataloader():
        images, targets = data.on_after_batch_transfer(batch, 0)
        said += model.run(None, {"input": images.numpy()})[0].argmax(axis=1).tolist()
        right += targets.tolist()
    assert (project / "stores" / "decoded").is_dir() == (cache == "disk")
    with (places["report_dir"] / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [card.class_names[i] for i in said] == [row["prediction"] for row in rows]
    correct = sum(s == r for s, r in zip(said, right, strict=True))
    assert correct / len(rows) == json.loads(places["accuracy_file"].read_text())["accuracy"]


def test_torch_serves_the_same_model(project: Path) -> None:
    from objrec.inference.predictor import Predictor
    from objrec.models.card import ModelCard

    model_dir = outputs(project)["model_dir"]
    images = sorted(outputs(project)["test_dir"].glob("*/*.jpg"))
    pixels = np.stack([ModelCard.load(model_dir).preprocessing.pixels(p, max_pixels=10**6) for p in images])
    by_torch, by_onnx = (Predictor.load(model_dir, runtime=name).logits(pixels) for name in ("torch", "onnxruntime"))
    np.testing.assert_allclose(by_torch, by_onnx, atol=1e-3)


def test_a_second_run_reuses_refuses_to_deploy_and_imports_no_torch(project: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "objrec.pipeline", *SMALL], cwd=project, capture_output=True, text=True
    )
    assert time.monotonic() - began < 30
    status, modules = json.loads(done.stdout.rsplit("MODULES ", 1)[1])
    assert status == 0 and not set(modules) & HEAVY
    assert statuses(project) == ["reused"] * 4 + ["ran"]
    assert "not deployed: same training data, accuracy not higher" in done.stdout


def test_only_what_depends_on_a_training_parameter_runs_again(project: Path) -> None:
    done = command(project, "objrec.pipeline", *SMALL, "train.learning_rate=0.001")
    assert done.returncode == 0, done.stderr
    assert statuses(project) == ["reused", "reused", "ran", "ran", "ran"]
    assert last_run(project)["steps"][2]["reason"] == "train.learning_rate 0.003 → 0.001" or (
        "optimizer.lr" in last_run(project)["steps"][2]["reason"]
    )


def test_training_alone_uses_the_cached_data(project: Path) -> None:
    done = command(project, "objrec.train", *SMALL, "debug=fast_dev_run", "run_dir=alone")
    assert done.returncode == 0, done.stderr
    assert "preprocess: reused" in done.stderr and (project / "alone" / "model" / "model.json").is_file()


def test_a_sweep_goes_on_after_a_failed_job_and_says_so(project: Path) -> None:
    # the failing job diverges at its first step; the sweep's exit status tells of it
    sweep = ["train.learning_rate=0.01,1e30", "optimizer=sgd", "train.max_epochs=1", "run_dir=sweep", "-m"]
    done = command(project, "objrec.train", *[s for s in SMALL if "max_epochs" not in s], *sweep)
    assert done.returncode == 1
    assert "the loss is" in done.stderr and "Traceback" not in done.stderr
    table = (project / "sweep" / "leaderboard.csv").read_text().splitlines()
    assert len(table) == 3 and table[1].startswith("0,") and table[2].startswith("1,,")


def test_real_images_from_random_weights(tmp_path: Path) -> None:
    """A short version of experiment=cifar10_cpu: a tenth of the images, smaller, three epochs."""
    archive = shared_file("cifar10-20k.zip")
    short = ["ingest.num_images=200", "preprocess.image_size=32", "train.max_epochs=3", "train.batch_size=100"]
    done = command(
        tmp_path, "objrec.pipeline", "experiment=cifar10_cpu", f"source.path={archive}", *short, "deploy.start=false"
    )
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == ["ran"] * 5
    assert last_run(tmp_path)["accuracy"] > 0.3  # 0.56 was measured; chance is 0.1, with a standard error of 0.015


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    small = [*SMALL, "deploy.start=false", "compute=cpu"]
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    began = time.monotonic()
    assert command(calm, "objrec.pipeline", *small).returncode == 0
    whole = time.monotonic() - began
    compared = ("raw_data_dir", "train_dir", "valid_dir", "test_dir", "model_dir", "accuracy_file", "report_dir")
    expected = {name: digest_of(scan(outputs(calm)[name])) for name in compared}
    moments = random.Random(1)
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-m", "objrec.pipeline", *small],
            cwd=stormy,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(moments.uniform(0.2, whole))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = command(stormy, "objrec.pipeline", *small)
        assert done.returncode == 0, done.stderr
        assert {name: digest_of(scan(outputs(stormy)[name])) for name in compared} == expected
        shutil.rmtree(stormy / ".objrec")
