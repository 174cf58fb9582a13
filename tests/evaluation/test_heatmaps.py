"""Gradients of ONNX graphs, and maps of where a prediction came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.evaluation_model import COLOURS, SIZE, write_model
from onnx import TensorProto, helper, numpy_helper

from objrec.evaluation.gradients import GRADIENT, SEED, NoRuleError, gradient_model
from objrec.evaluation.heatmaps import make_explainer
from objrec.inference.predictor import Predictor
from objrec.models.card import ModelCard

RNG = np.random.default_rng(0)


def graph(nodes: Sequence[onnx.NodeProto], constants: dict[str, np.ndarray], side: int = 9) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


def block(act: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A strided convolution, an activation from h to a, a residual with a gate (as in squeeze and excite), a head."""
    node = helper.make_node
    nodes = [
        node("Conv", ["input", "w1", "b1"], ["h"], strides=[2, 2], pads=[1, 1, 1, 1]),
        *act,
        node("Conv", ["a", "w2"], ["c"], pads=[2, 2, 2, 2], dilations=[2, 2], group=2),
        node("ReduceMean", ["c", "axes"], ["m"], keepdims=1),
        node("Conv", ["m", "w3"], ["s"]),
        node("HardSigmoid", ["s"], ["gate"], alpha=0.17),
        node("Mul", ["c", "gate"], ["cg"]),
        node("Add", ["cg", "a"], ["r"]),
        node("Clip", ["r", "low", "high"], ["r6"]),
        node("GlobalAveragePool", ["r6"], ["p"]),
        node("Reshape", ["p", "flat"], ["f"]),
        node("MatMul", ["f", "w4"], ["y"]),
        node("Add", ["y", "b4"], ["z"]),
        node("Gemm", ["z", "w5", "b4"], ["logits"], transB=1),
    ]
    constants = {
        "w1": weight(6, 3, 3, 3),
        "b1": weight(6),
        "w2": weight(6, 3, 3, 3),
        "w3": weight(6, 6, 1, 1),
        "w4": weight(6, 4),
        "b4": weight(4)[None],
        "w5": weight(4, 4),
        "axes": np.array([2, 3]),
        "low": np.float32(0).reshape(()),
        "high": np.float32(6).reshape(()),
        "flat": np.array([0, -1]),
    }
    return graph(nodes, constants)


ACTIVATIONS = {
    "relu": [helper.make_node("Relu", ["h"], ["a"])],
    "silu": [helper.make_node("Sigmoid", ["h"], ["g"]), helper.make_node("Mul", ["h", "g"], ["a"])],
    "hardswish": [helper.make_node("HardSwish", ["h"], ["a"])],
}


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_equals_finite_differences(name: str, side: int) -> None:
    model = block(ACTIVATIONS[name])
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = side
    session = onnxruntime.InferenceSession(gradient_model(model, "input").SerializeToString())
    x = RNG.normal(0, 1, (2, 3, side, side)).astype(np.float32)
    seed = RNG.normal(0, 1, (2, 4)).astype(np.float32)
    gradient = session.run([GRADIENT], {"input": x, SEED: seed})[0]
    assert gradient.shape == x.shape

    def value(at: np.ndarray) -> np.ndarray:
        return (session.run(["logits"], {"input": at, SEED: seed})[0] * seed).sum(axis=1)

    step = 1e-3
    for _ in range(6):
        direction = RNG.normal(0, 1, x.shape).astype(np.float32)
        numeric = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
        exact = (gradient * direction).sum(axis=(1, 2, 3))
        assert np.abs(numeric - exact).max() < 0.02 * np.abs(gradient).sum() / np.sqrt(gradient.size) + 2e-3


def test_an_operator_without_a_rule_is_refused() -> None:
    model = block([helper.make_node("Softplus", ["h"], ["a"])])
    with pytest.raises(NoRuleError, match="Softplus"):
        gradient_model(model, "input")


def two_colours(preprocessed_side: int = SIZE) -> np.ndarray:
    """Grey, with a red square at the top left and a blue one at the bottom right."""
    image = np.full((1, preprocessed_side, preprocessed_side, 3), 90, np.uint8)
    image[0, 1:6, 1:6] = COLOURS["red"]
    image[0, -6:-1, -6:-1] = COLOURS["blue"]
    return image


@pytest.mark.parametrize("way", ["Grad-CAM", "occlusion"])
def test_the_map_points_at_the_object_of_the_class(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = sorted(COLOURS)
    folder = write_model(tmp_path / "m", classes)
    predictor = Predictor.load(folder)
    if way == "occlusion":
        monkeypatch.setattr("objrec.evaluation.gradients._RULES", {})
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
