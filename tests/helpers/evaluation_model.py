"""A small model folder for tests, made with onnx alone, images for it, and the evaluate step run on both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from objrec.config.load import load_config
from objrec.models.card import ModelCard, file_sha256
from objrec.steps.base import restrict
from objrec.steps.evaluate import STEP

SIZE = 16
COLOURS = {
    "blue": (40, 60, 220),
    "green": (40, 200, 60),
    "red": (220, 50, 40),
    "yellow": (220, 210, 50),
}


def write_model(folder: Path, classes: Sequence[str], *, sharpness: float = 6.0, seed: int = 0, **card: object) -> Path:
    """Write a model folder that tells the COLOURS apart, more or less: weights are disturbed by ``seed``."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    detectors = np.array([np.array(COLOURS.get(c, rng.integers(0, 256, 3))) / 127.5 - 1 for c in classes], np.float32)
    detectors += rng.normal(0, 0.05, detectors.shape).astype(np.float32)
    weights = {
        "conv.weight": np.ascontiguousarray(detectors[:, :, None, None]),
        "conv.bias": np.full(len(classes), 0.5, np.float32),
        "fc.weight": sharpness * np.eye(len(classes), dtype=np.float32),
        "fc.bias": np.zeros(len(classes), np.float32),
    }
    save_file(weights, folder / "model.safetensors")
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.bias"], ["features"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classes)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    fields = {
        "backbone": {"name": "colours"},
        "class_names": list(classes),
        "input_size": SIZE,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "training_data_fingerprint": "0" * 64,
        "metrics": {"val/acc": 0.9},
        "git_commit": None,
        "versions": {},
        "files": {n: file_sha256(folder / n) for n in ("model.safetensors", "model.onnx")},
        **card,
    }
    ModelCard.model_validate(fields).save(folder)
    return folder


def write_images(folder: Path, classes: Sequence[str], *, count: int = 12, seed: int = 0, noise: float = 60) -> Path:
    """Write ``count`` noisy images of each of ``classes``, some of them nearer to another class."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = np.array(COLOURS.get(name, (128, 128, 128)), np.float64)
            if i % 5 == 4:
                colour = 0.4 * colour + 0.6 * np.array(list(COLOURS.values())[rng.integers(4)])
            pixels = colour + rng.normal(0, noise, 3) + rng.normal(0, 20, (20, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03}.jpg", quality=90)
    return folder


def evaluate(out: Path, *overrides: str, **inputs: Path) -> tuple[dict[str, Any], Path]:
    """Run the evaluate step; returns the accuracy file's content and the report folder."""
    report = out / "report"
    report.mkdir(parents=True)
    accuracy = out / "accuracy.json"
    STEP.run(restrict(load_config(overrides), STEP), inputs, {"accuracy_file": accuracy, "report_dir": report})
    return json.loads(accuracy.read_text()), report
