"""Evaluate, predict.py and the endpoint give every test image the same label."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_model import COLOURS, evaluate, write_images, write_model

from objrec.config.load import load_config
from objrec.deployment import service
from objrec.inference.predictor import Predictor
from objrec.model_registry.records import Record
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.serving import request as handler
from objrec.serving.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]


def by_evaluate(out: Path, model: Path, test: Path) -> tuple[float, dict[str, str]]:
    accuracy, report = evaluate(out, model_dir=model, test_dir=test)
    rows = read_csv(report / "predictions.csv")
    return accuracy["accuracy"], {row["path"]: row["prediction"] for row in rows}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_predict(test: Path, *arguments: object) -> dict[str, dict[str, Any]]:
    line = [sys.executable, ROOT / "predict.py", str(test), *map(str, arguments), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    return {"/".join(Path(row["image"]).parts[-2:]): row for row in rows}


@contextmanager
def endpoint(registry: Path, model: Path) -> Iterator[str]:
    card = ModelCard.load(model)
    store = FolderRegistry(registry)
    record = Record(
        sha256=card.sha256,
        training_data_fingerprint=card.training_data_fingerprint,
        accuracy=0.5,
        test_data_fingerprint="test",
        num_images=1,
    )
    store.add(model, record)
    store.promote(record)
    config = load_config(["serve.runtime=onnxruntime", "serve.precision=fp32"])
    try:
        yield service.ensure_started(ServiceSettings.of(config, registry_dir=str(registry.resolve()))).url
    finally:
        service.stop(registry)


def test_all_three_agree_to_the_last_image(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", sorted(COLOURS), temperature=2.5)
    test = write_images(tmp_path / "test", sorted(COLOURS), count=40, noise=90)
    (test / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    accuracy, evaluated = by_evaluate(tmp_path / "out", model, test)
    assert 0.4 < accuracy < 0.95
    assert len([path for path, label in evaluated.items() if label]) == 160 and len(evaluated) == 161
    with endpoint(tmp_path / "registry", model) as url:
        answers = [by_predict(test, "--model", model), by_predict(test, "--endpoint", url)]
    for found in answers:
        assert {path: row.get("label", "") for path, row in found.items()} == evaluated
        right = sum(path.split("/")[0] == row.get("label") for path, row in found.items())
        assert right / len(evaluated) == pytest.approx(accuracy)


def test_unknown_only_when_asked_for_and_the_same_everywhere(tmp_path: Path) -> None:
    rule = {"score": "energy", "threshold": 0.0, "keep": 0.95, "auroc": 0.9, "num_images": 10}
    test = write_images(tmp_path / "test", sorted(COLOURS), count=10)
    _, report = evaluate(
        tmp_path / "first", model_dir=write_model(tmp_path / "m", sorted(COLOURS), unknown=rule), test_dir=test
    )
    scores = {row["path"]: float(row["unknown_score"]) for row in read_csv(report / "predictions.csv")}
    rule["threshold"] = sum(sorted(scores.values())[14:16]) / 2  # between two images, so that rounding decides nothing
    rejected = {path for path, value in scores.items() if value < rule["threshold"]}
    assert len(rejected) == 15
    model = write_model(tmp_path / "model", sorted(COLOURS), unknown=rule)
    _, report = evaluate(tmp_path / "out", model_dir=model, test_dir=test)
    share = json.loads((report / "metrics.json").read_text())["unknown"]["known_rejected"]
    assert share == pytest.approx(len(rejected) / 40)
    with endpoint(tmp_path / "registry", model) as url:
        for where in (("--model", model), ("--endpoint", url)):
            asked = by_predict(test, *where, "--unknown")
            assert {path for path, row in asked.items() if row["label"] is None} == rejected
            assert {row.get("reason") for path, row in asked.items() if path in rejected} == {"unknown"}
            assert not any("reason" in row for path, row in asked.items() if path not in rejected)
            assert all(row["label"] for row in by_predict(test, *where).values())
        image = (test / "red" / "000.jpg").read_bytes()
        body = json.dumps({"data": base64.b64encode(image).decode(), "unknown": True}).encode()
        request = urllib.request.Request(f"{url}/score", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert (json.load(answer)["label"] is None) == ("red/000.jpg" in rejected)


def test_a_model_without_a_threshold_says_so(tmp_path: Path) -> None:
    predictor = Predictor.load(write_model(tmp_path / "model", sorted(COLOURS)))
    image = (write_images(tmp_path / "test", ["red"], count=1) / "red" / "000.jpg").read_bytes()
    body = json.dumps({"data": base64.b64encode(image).decode(), "unknown": True}).encode()
    answer = handler.score(body, "application/json", predictor)
    assert (answer.status, answer.body["error"]) == (422, "no_threshold")
