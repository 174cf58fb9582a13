"""Maps of where a prediction came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.evaluation_model import COLOURS, SIZE, write_model
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from objrec.evaluation.heatmaps import make_explainer
from objrec.images.preprocessing import Preprocessing
from objrec.inference.predictor import Predictor
from objrec.models.card import ModelCard

RNG = np.random.default_rng(0)


def test_equals_the_class_activation_map_of_a_linear_head(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", sorted(COLOURS))
    preprocessing = ModelCard.load(folder).preprocessing
    pixels = RNG.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    classes = np.array([0, 2, 3])
    found = make_explainer(folder, preprocessing, Predictor.load(folder).logits).explain(pixels, classes)
    w = load_file(folder / "model.safetensors")
    image = preprocessing.normalize(pixels)
    features = np.maximum(np.einsum("nchw,kc->nkhw", image, w["conv.weight"][:, :, 0, 0]) + 0.5, 0)
    expected = np.maximum(np.einsum("nkhw,nk->nhw", features, w["fc.weight"][classes]), 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def curved(path: Path, *, residual: bool) -> None:
    """A model whose head is not linear: padding by the image's own shape, a map, a convolution, GELU, a maximum.

    ``residual`` lets the image reach the logits past the map too.
    """
    node = helper.make_node
    past = [node("ReduceMean", ["input", "axes"], ["m"], keepdims=0), node("Sum", ["f", "m"], ["s"])]
    nodes = [
        node("Shape", ["input"], ["shape"]),
        node("Sub", ["shape", "shape"], ["nothing"]),
        node("Concat", ["nothing", "nothing"], ["pads"], axis=0),
        node("Pad", ["input", "pads"], ["padded"]),
        node("Conv", ["padded", "w1"], ["map"], strides=[2, 2]),
        node("Conv", ["map", "w2"], ["c"]),
        node("Gelu", ["c"], ["g"]),
        node("GlobalMaxPool", ["g"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        *(past if residual else []),
        node("Gemm", ["s" if residual else "f", "w3"], ["logits"]),
    ]
    shapes = {"w1": (3, 3, 2, 2), "w2": (3, 3, 1, 1), "w3": (3, 2)}
    weights = [numpy_helper.from_array(RNG.normal(0, 1, s).astype(np.float32), n) for n, s in shapes.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [*weights, numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.mark.parametrize(("residual", "way"), [(False, "class activation on the 6 x 6"), (True, "occlusion")])
def test_any_head_is_explained(tmp_path: Path, residual: bool, way: str) -> None:
    curved(tmp_path / "model.onnx", residual=residual)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    preprocessing = Preprocessing(size=12, mean=[0.5] * 3, std=[0.5] * 3)
    explainer = make_explainer(
        tmp_path, preprocessing, lambda pixels: session.run(None, {"input": preprocessing.normalize(pixels)})[0]
    )
    assert explainer.method.startswith(way)
    maps = explainer.explain(RNG.integers(0, 256, (4, 12, 12, 3), dtype=np.uint8), np.array([0, 1, 1, 0]))
    assert maps.dtype == np.float32 and maps.min() >= 0 and maps.max() == pytest.approx(1)


def two_colours(preprocessed_side: int = SIZE) -> np.ndarray:
    """Grey, with a red square at the top left and a blue one at the bottom right."""
    image = np.full((1, preprocessed_side, preprocessed_side, 3), 90, np.uint8)
    image[0, 1:6, 1:6] = COLOURS["red"]
    image[0, -6:-1, -6:-1] = COLOURS["blue"]
    return image


@pytest.mark.parametrize(
    ("way", "limit", "value"),
    [
        ("class activation", "MAX_HEAD", 150),
        ("occlusion", "MAX_HEAD", 1),  # what follows the feature map is too long
        ("occlusion", "MIN_MAP", SIZE + 1),  # every feature map is too coarse
    ],
)
def test_the_map_points_at_the_object_of_the_class(
    tmp_path: Path, way: str, limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = sorted(COLOURS)
    folder = write_model(tmp_path / "m", classes)
    predictor = Predictor.load(folder)
    monkeypatch.setattr(f"objrec.evaluation.heatmaps.{limit}", value)
    explainer = make_explainer(folder, ModelCard.load(folder).preprocessing, predictor.logits)
    assert explainer.method.startswith(way)
    for colour, quarter in (("red", 0), ("blue", 3)):
        (found,) = explainer.explain(two_colours(), np.array([classes.index(colour)]))
        assert found.max() == pytest.approx(1)
        half = found.shape[0] // 2
        quarters = np.array([[found[y, x].mean() for x in _halves(half)] for y in _halves(half)])
        assert quarters.argmax() == quarter


def _halves(half: int) -> tuple[slice, slice]:
    return slice(None, half), slice(-half, None)
