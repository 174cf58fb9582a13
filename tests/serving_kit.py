"""A model folder, test pictures and a registry in a second, without training and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from objrec.models.card import ModelCard, file_sha256

CLASSES = ["red", "green", "blue"]
SIZE = 32


def make_model(
    folder: Path,
    *,
    seed: int = 0,
    training_data: str = "data-1",
    classes: list[str] = CLASSES,
    mirrored: bool = False,
    nan: bool = False,
) -> Path:
    """Write a small convolutional network that knows red, green and blue; ``mirrored`` makes it wrong on purpose."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    n = len(classes)
    conv = random.normal(0, 0.01, (8, 3, 3, 3)).astype(np.float32)
    for channel in range(3):
        conv[channel, channel, 1, 1] = 1.0
    gemm = random.normal(0, 0.01, (n, 8)).astype(np.float32)
    for i in range(n):
        gemm[i, (i + 1 if mirrored else i) % 3] += 2.0
    bias = np.full(n, np.nan if nan else 0.0, np.float32)
    weights = {"conv": conv, "gemm": gemm, "bias": bias}
    nodes = [
        helper.make_node("Conv", ["pixels", "conv"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "gemm", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", n])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    save_file(weights, folder / "model.safetensors")
    card = ModelCard(
        backbone={"name": "tiny"},
        class_names=classes,
        input_size=SIZE,
        mean=[0.5, 0.5, 0.5],
        std=[0.25, 0.25, 0.25],
        interpolation="bilinear",
        training_data_fingerprint=training_data,
        metrics={"val/acc": 0.9},
        git_commit=None,
        versions={},
        files={name: file_sha256(folder / name) for name in ("model.safetensors", "model.onnx")},
    )
    card.save(folder)
    return folder


def picture(label: str, seed: int, *, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy picture whose mean colour is the label's."""
    random = np.random.default_rng([seed, CLASSES.index(label)])
    noise = random.integers(0, 120, (size[1], size[0], 3))
    noise[:, :, CLASSES.index(label)] += 110
    return Image.fromarray(noise.astype(np.uint8))


def make_pictures(folder: Path, *, per_class: int = 8, first: int = 0) -> Path:
    """Write ``<class>/<n>.jpg`` for each class."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + per_class):
            picture(label, i).save(folder / label / f"{i:04}.jpg", quality=90)
    return folder


def make_accuracy(path: Path, model_dir: Path, accuracy: Any, *, test_data: str = "test-1", **more: Any) -> Path:
    """Write an accuracy file for a model."""
    content = {
        "accuracy": accuracy,
        "num_images": 24,
        "confidence_interval": [0.8, 1.0],
        "test_data_fingerprint": test_data,
        "model_sha256": ModelCard.load(model_dir).sha256,
        **more,
    }
    path.write_text(json.dumps(content))
    return path
