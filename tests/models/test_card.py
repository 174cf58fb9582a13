"""``model.json``: what is no card of ours is an error in a line, before anything runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import CLASSES, make_model, put_in_registry

from objrec.config.errors import UserError
from objrec.inference.predictor import Predictor
from objrec.inference.runtimes import is_installed
from objrec.models.card import ModelCard

HASH = "0" * 64
FILES = {"model.safetensors": HASH, "model.onnx": HASH}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m")


def change(model: Path, **fields: Any) -> None:
    path = model / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("format_version", v) for v in ("2", None, 0, 1.5, [])],
        *[("files", v) for v in ({}, {"model.onnx": HASH}, {"model.safetensors": HASH}, {**FILES, "model.onnx": "x"})],
        *[("files", {**FILES, name: HASH}) for name in ("..", ".", "", "../secret", "a\0b", "a/b")],
        *[("input_size", v) for v in (0, -4, 200_000)],
        *[("mean", v) for v in ([0.5, 0.5], [0.5] * 4, [0.5, 0.5, float("nan")])],
        *[("std", v) for v in ([0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, -1], [0.5, 0.5, float("inf")])],
        ("interpolation", "foo"),
        *[("crop_pct", v) for v in (0, 1.2, float("nan"))],
        *[("temperature", v) for v in (0, -1, float("nan"), float("inf"))],
        *[("class_names", v) for v in (["a", "b", "a"], ["a", "", "b"], ["a"])],
        *[("unknown", v) for v in ({}, [], {"score": "energy"}, {"score": "x", "threshold": 0.5})],
        *[("unknown", {"score": "energy", "threshold": v}) for v in ("0.5", None, True, float("nan"), 10**400)],
    ],
)
def test_a_card_with_an_impossible_value_is_refused(model: Path, field: str, value: Any) -> None:
    change(model, **{field: value})
    with pytest.raises(UserError, match=rf"model\.json is damaged: {field}"):
        ModelCard.load(model)


def test_cards_that_this_program_wrote_load(model: Path) -> None:
    """A trained model's card: a rule for the unknown, and fields of other writers."""
    rule = {"score": "max_probability", "threshold": 0, "keep": 0.95, "auroc": float("nan"), "num_images": 0}
    change(model, unknown=rule, quantization={"precision": "int8"}, metrics={"val/loss": float("nan")})
    assert ModelCard.load(model).unknown is not None
    card = json.loads((model / "model.json").read_text())
    for name in ("format_version", "temperature", "unknown", "crop_pct"):
        del card[name]
    (model / "model.json").write_text(json.dumps(card))
    assert ModelCard.load(model).temperature == 1.0


def test_a_card_of_a_newer_format_asks_for_an_upgrade(model: Path) -> None:
    change(model, format_version=2)
    with pytest.raises(UserError, match="upgrade objrec"):
        ModelCard.load(model)


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, "\udcff"])
def test_a_card_that_is_no_object_is_refused(model: Path, text: str) -> None:
    (model / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        ModelCard.load(model)


@pytest.mark.parametrize("name", ["model.json", "model.onnx"])
def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).unlink()
    for make in (os.mkfifo, Path.mkdir):
        make(model / name)
        for use in (Predictor.load, lambda folder: put_in_registry(tmp_path / "registry", folder)):
            with pytest.raises(UserError, match=f"{name} is not a file"):
                use(model)
        (model / name).unlink() if (model / name).is_fifo() else (model / name).rmdir()
    with pytest.raises(UserError, match="no model.json" if name == "model.json" else "is missing"):
        Predictor.load(model)


def test_a_file_in_place_of_a_model_folder_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="is not a model folder"):
        ModelCard.load(model / "model.onnx")


def test_a_file_that_cannot_be_read_is_said(model: Path) -> None:
    for name in ("model.onnx", "model.json"):
        (model / name).unlink()
        (model / name).symlink_to(model / ("x" * 300))  # not a mode: root reads whatever the modes say
        with pytest.raises(UserError, match=f"{name} cannot be read: File name too long"):
            Predictor.load(model)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("fields", [{"class_names": ["a", "b"]}, {"class_names": [*CLASSES, "d"]}, {"input_size": 48}])
def test_a_model_that_does_not_fit_its_card_is_refused(model: Path, fields: dict[str, Any], runtime: str) -> None:
    if not is_installed(runtime):
        pytest.skip(f"needs {runtime}")
    change(model, **fields)
    with pytest.raises(UserError, match="must be the one that was written with it"):
        Predictor.load(model, runtime=runtime)
