"""The gradient of an ONNX model's output, as another ONNX model: reverse-mode differentiation without torch.

Only what stands between a feature map and the logits of usual convolutional networks has a rule here;
``gradient_model`` refuses the rest, and its caller takes another way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED: Final = "objrec_seed"  # extra input, (N, classes): the direction in which the logits are differentiated
GRADIENT: Final = "objrec_gradient"  # extra output: of sum(logits * seed) with respect to the chosen tensor

SMALL: Final = 64  # elements of a constant that may be a shape or an axis


class NoRuleError(Exception):
    """An operator on the way has no rule."""


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """Return the inferred shape of every tensor; None for a dimension that is not fixed."""
    light = onnx.ModelProto()  # without the weights, which shape inference would copy twice; it needs small constants
    light.opset_import.extend(model.opset_import)
    light.ir_version = model.ir_version
    graph = light.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    shapes: dict[str, list[int | None]] = {}
    for tensor in model.graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
        if np.prod(tensor.dims) <= SMALL:
            graph.initializer.add().CopyFrom(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    inferred = onnx.shape_inference.infer_shapes(light).graph
    for info in (*model.graph.input, *inferred.value_info, *model.graph.output):
        dims = info.type.tensor_type.shape.dim
        shapes[info.name] = [d.dim_value if d.HasField("dim_value") else None for d in dims]
    return shapes


def gradient_model(
    model: onnx.ModelProto, tensor: str, shapes: dict[str, list[int | None]] | None = None
) -> onnx.ModelProto:
    """Return ``model`` with the input ``SEED`` and the outputs ``tensor`` and ``GRADIENT`` added.

    Args:
        shapes: those of ``shapes_of(model)``, where they are known already.

    Raises:
        NoRuleError: when an operator between ``tensor`` and the output cannot be differentiated here.
    """
    return _Builder(model, shapes or shapes_of(model)).build(tensor)


class _Builder:
    def __init__(self, model: onnx.ModelProto, shapes: dict[str, list[int | None]]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.shapes = shapes
        self.constants = {t.name for t in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.constants.add(node.output[0])
        self.nodes: list[onnx.NodeProto] = []
        self.pending: dict[str, list[str]] = {}  # tensor -> names of the partial gradients that reached it

    def build(self, tensor: str) -> onnx.ModelProto:
        output = self.graph.output[0].name
        on_the_way = self._reachable(tensor)
        self.pending[output] = [SEED]
        for node in reversed(self.graph.node):
            if node.output[0] in self.pending and on_the_way & set(node.input):
                rule = _RULES.get(node.op_type)
                if rule is None or any(o in self.pending for o in node.output[1:]):
                    raise NoRuleError(node.op_type)
                rule(self, node, self._total(node.output[0]), on_the_way)
        if tensor not in self.pending:
            raise NoRuleError(f"{tensor} does not reach the output")
        self.add("Identity", [self._total(tensor)], name=GRADIENT)
        self.graph.node.extend(self.nodes)
        classes = self.shapes[output][1]
        self.graph.input.append(helper.make_tensor_value_info(SEED, TensorProto.FLOAT, ["batch", classes]))
        for name in (tensor, GRADIENT):
            shape = ["batch", *self.shapes[tensor][1:]]
            self.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return self.model

    def _reachable(self, tensor: str) -> set[str]:
        """Return ``tensor`` and every tensor computed from it."""
        found = {tensor}
        for node in self.graph.node:
            if found & set(node.input):
                found.update(node.output)
        return found

    def _total(self, tensor: str) -> str:
        parts = self.pending[tensor]
        if len(parts) > 1:
            parts = self.pending[tensor] = [self.add("Sum", parts)]
        return parts[0]

    def add(self, op_type: str, inputs: list[str], *, name: str | None = None, **attributes: Any) -> str:
        name = name or f"objrec_gradient_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def constant(self, value: float | list[int]) -> str:
        name = f"objrec_constant_{len(self.graph.initializer)}"
        array = np.array(value, np.int64 if isinstance(value, list) else np.float32)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def pass_on(self, tensor: str, gradient: str) -> None:
        self.pending.setdefault(tensor, []).append(gradient)

    def shape(self, tensor: str) -> list[int | None]:
        shape = self.shapes.get(tensor)
        if shape is None or any(d is None for d in shape[1:]):
            raise NoRuleError(f"the shape of {tensor} is not fixed")
        return shape

    def like(self, tensor: str, gradient: str, of: str) -> str:
        """Sum ``gradient``, which has the shape of ``of``, over the dimensions along which ``tensor`` was repeated."""
        small, large = self.shape(tensor), self.shape(of)
        if len(small) != len(large):
            raise NoRuleError("broadcast to more dimensions")
        axes = [i for i in range(1, len(large)) if small[i] != large[i]]
        return self.add("ReduceSum", [gradient, self.constant(axes)], keepdims=1) if axes else gradient

    def between(self, tensor: str, low: float, high: float) -> str:
        """Return 1 where low < tensor < high, else 0."""
        above = self.add("Greater", [tensor, self.constant(low)])
        below = self.add("Less", [tensor, self.constant(high)])
        return self.add("Cast", [self.add("And", [above, below])], to=TensorProto.FLOAT)

    def value(self, name: str) -> np.ndarray[Any, Any]:
        """Return the value of a constant."""
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        for node in self.graph.node:
            if node.op_type == "Constant" and node.output[0] == name:
                return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        raise NoRuleError(f"{name} is computed")


Rule = Callable[[_Builder, onnx.NodeProto, str, set[str]], None]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _conv(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    x, weight = node.input[:2]
    given = _attributes(node)
    if given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NoRuleError("Conv with auto_pad")
    kernel = b.shape(weight)[2:]
    rank = len(kernel)
    strides, dilations = given.get("strides", [1] * rank), given.get("dilations", [1] * rank)
    pads = given.get("pads", [0] * 2 * rank)
    missing = []  # columns at the far edge that the stride never reached
    for i, size in enumerate(kernel):
        assert size is not None
        reached = strides[i] * ((b.shape(node.output[0])[2 + i] or 0) - 1) + (size - 1) * dilations[i] + 1
        missing.append((b.shape(x)[2 + i] or 0) + pads[i] + pads[rank + i] - reached)
    attributes = {"strides": strides, "dilations": dilations, "pads": pads, "group": given.get("group", 1)}
    b.pass_on(x, b.add("ConvTranspose", [dy, weight], output_padding=missing, **attributes))


def _gemm(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    given = _attributes(node)
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0:
        raise NoRuleError("Gemm with transA or alpha")
    b.pass_on(node.input[0], b.add("Gemm", [dy, node.input[1]], transB=1 - given.get("transB", 0)))


def _matmul(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    if node.input[1] not in b.constants or len(b.shape(node.input[1])) != 2:
        raise NoRuleError("MatMul of two computed tensors")
    b.pass_on(node.input[0], b.add("MatMul", [dy, b.add("Transpose", [node.input[1]], perm=[1, 0])]))


def _add(b: _Builder, node: onnx.NodeProto, dy: str, way: set[str]) -> None:
    for x in node.input:
        if x in way:
            b.pass_on(x, b.like(x, dy, node.output[0]))


def _mul(b: _Builder, node: onnx.NodeProto, dy: str, way: set[str]) -> None:
    for x, other in (node.input, reversed(node.input)):
        if x in way:
            b.pass_on(x, b.like(x, b.add("Mul", [dy, other]), node.output[0]))


def _relu(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    b.pass_on(node.input[0], b.add("Mul", [dy, b.add("Sign", [node.output[0]])]))


def _clip(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    bounds = [-np.inf, np.inf]
    for i, name in enumerate(node.input[1:3]):
        if name:
            bounds[i] = float(b.value(name))
    b.pass_on(node.input[0], b.add("Mul", [dy, b.between(node.input[0], *bounds)]))


def _sigmoid(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    y = node.output[0]
    slope = b.add("Mul", [y, b.add("Sub", [b.constant(1.0), y])])
    b.pass_on(node.input[0], b.add("Mul", [dy, slope]))


def _hard_sigmoid(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    alpha = _attributes(node).get("alpha", 0.2)
    slope = b.add("Mul", [b.between(node.output[0], 0.0, 1.0), b.constant(alpha)])
    b.pass_on(node.input[0], b.add("Mul", [dy, slope]))


def _hard_swish(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    x = node.input[0]  # 0 below -3, (2x + 3) / 6 to 3, then 1
    inside = b.add("Div", [b.add("Add", [b.add("Add", [x, x]), b.constant(3.0)]), b.constant(6.0)])
    inside = b.add("Mul", [b.between(x, -3.0, 3.0), inside])
    slope = b.add("Add", [inside, b.between(x, 3.0, np.inf)])
    b.pass_on(x, b.add("Mul", [dy, slope]))


def _mean(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    x = node.input[0]
    shape = b.shape(x)
    given = _attributes(node)
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape)))
    else:
        axes = given.get("axes") or [int(a) for a in b.value(node.input[1])]
    axes = [a % len(shape) for a in axes]
    if not given.get("keepdims", 1):
        dy = b.add("Unsqueeze", [dy, b.constant(axes)])
    count = float(np.prod([shape[a] or 0 for a in axes]))
    b.pass_on(x, b.add("Expand", [b.add("Div", [dy, b.constant(count)]), b.add("Shape", [x])]))


def _reshape(b: _Builder, node: onnx.NodeProto, dy: str, _: set[str]) -> None:
    b.pass_on(node.input[0], b.add("Reshape", [dy, b.add("Shape", [node.input[0]])]))


_RULES: Final[dict[str, Rule]] = {
    "Add": _add,
    "Clip": _clip,
    "Conv": _conv,
    "Dropout": _reshape,
    "Flatten": _reshape,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _reshape,
    "MatMul": _matmul,
    "Mul": _mul,
    "ReduceMean": _mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Sigmoid": _sigmoid,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
}
