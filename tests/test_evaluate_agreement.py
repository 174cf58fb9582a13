"""Evaluate, predict.py and the endpoint give every test picture the same label."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from evaluation_model import COLOURS, evaluate, write_model, write_pictures

from objrec.config.load import load_config
from objrec.models.card import ModelCard
from objrec.registry.records import Record
from objrec.registry.store import FolderRegistry
from objrec.serving import service
from objrec.serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


def by_evaluate(out: Path, model: Path, test: Path) -> tuple[float, dict[str, str]]:
    accuracy, report = evaluate(out, model_dir=model, test_dir=test)
    with (report / "predictions.csv").open(newline="") as file:
        return accuracy["accuracy"], {row["path"]: row["prediction"] for row in csv.DictReader(file)}


def by_predict(model: Path, test: Path) -> dict[str, str]:
    line = [sys.executable, ROOT / "predict.py", str(test), "--model", str(model), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    return {"/".join(Path(r["image"]).parts[-2:]): r.get("label") or "" for r in rows}


def by_endpoint(registry: Path, model: Path, test: Path, paths: list[str]) -> dict[str, str]:
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
    started = service.ensure_started(Settings.of(config, registry_dir=str(registry.resolve())))
    found = {}
    try:
        for path in paths:
            request = urllib.request.Request(
                f"{started.url}/score", (test / path).read_bytes(), {"Content-Type": "image/jpeg"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                found[path] = json.load(answer)["label"]
    finally:
        service.stop(registry)
    return found


def test_all_three_agree_to_the_last_picture(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", sorted(COLOURS), temperature=2.5)
    test = write_pictures(tmp_path / "test", sorted(COLOURS), count=40, noise=90)
    (test / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    accuracy, evaluated = by_evaluate(tmp_path / "out", model, test)
    assert 0.4 < accuracy < 0.95
    readable = [path for path, label in evaluated.items() if label]
    assert len(readable) == 160 and len(evaluated) == 161
    predicted = by_predict(model, test)
    assert predicted == evaluated
    served = by_endpoint(tmp_path / "registry", model, test, readable)
    assert served == {path: evaluated[path] for path in readable}
    for labels in (predicted, served):
        right = sum(path.split("/")[0] == label for path, label in labels.items())
        assert right / len(evaluated) == pytest.approx(accuracy)
