"""The evaluate step on a small model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_model import COLOURS, write_model, write_pictures

from objrec.config.load import load_config
from objrec.images.folders import fingerprint
from objrec.models.card import file_sha256
from objrec.pipeline.step import restrict
from objrec.steps.evaluate import STEP


def evaluate(out: Path, *overrides: str, **inputs: Path) -> tuple[dict, Path]:
    report = out / "report"
    report.mkdir(parents=True)
    accuracy = out / "accuracy.json"
    STEP.run(restrict(load_config(overrides), STEP), inputs, {"accuracy_file": accuracy, "report_dir": report})
    return json.loads(accuracy.read_text()), report


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluate")
    return write_model(root / "model", sorted(COLOURS)), write_pictures(root / "test", sorted(COLOURS))


def test_accuracy_file_and_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    accuracy, report = evaluate(tmp_path, model_dir=model, test_dir=test)
    assert 0.5 < accuracy["accuracy"] < 1
    assert accuracy["num_images"] == 48
    low, high = accuracy["confidence_interval"]
    assert low < accuracy["accuracy"] < high
    assert accuracy["test_data_fingerprint"] == fingerprint(test)
    assert accuracy["model_sha256"] == file_sha256(model / "model.safetensors")
    names = {"report.html", "confusion_matrix.png", "per_class.csv", "predictions.csv", "metrics.json"}
    assert {p.name for p in report.iterdir()} >= names


def test_same_inputs_same_bytes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, test = folders
    _, first = evaluate(tmp_path / "a", model_dir=model, test_dir=test)
    _, second = evaluate(tmp_path / "b", "evaluate.batch_size=7", model_dir=model, test_dir=test)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
