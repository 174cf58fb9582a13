"""Where in an image the model found its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from objrec.images.preprocessing import Preprocessing
from objrec.inference.scores import softmax

MIN_MAP: Final = 4  # cells a side: a coarser map says "somewhere in the image"
MAX_HEAD: Final = 150  # nodes behind a feature map, which run once for each of its cells
SHORT_HEAD: Final = 20  # nodes: pooling and a classifier, no further stage
OCCLUDED: Final = 5  # squares a side that are covered in turn where there is no such map

Maps = npt.NDArray[np.float32]  # (N, h, w) in [0, 1]
Explain = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], Maps]


@dataclass(frozen=True)
class Explainer:
    """A way to explain predictions.

    Attributes:
        method: for people.
        explain: uint8 pixels (N, size, size, 3) and (N,) classes -> maps of what spoke for each class.
        images: how many a report can afford to have explained.
    """

    method: str
    explain: Explain
    images: int


def make_explainer(
    model_dir: Path, preprocessing: Preprocessing, forward: Callable[[Any], npt.NDArray[np.float32]]
) -> Explainer:
    """Return class activation maps where ``model.onnx`` has a feature map, else occlusion by ``forward``.

    Args:
        forward: uint8 pixels (N, size, size, 3) -> logits.
    """
    model = onnx.load(model_dir / "model.onnx")
    entry, logits = model.graph.input[0], model.graph.output[0]
    image = preprocessing.normalize(np.zeros((1, preprocessing.size, preprocessing.size, 3), np.uint8))
    for layer, found in reversed(_feature_maps(model, image)):  # later maps know more of the classes
        info = helper.make_tensor_value_info(layer, TensorProto.FLOAT, ["cells", *found.shape[1:]])
        head = _part(model, info, logits)
        if len(head.graph.node) <= MAX_HEAD:
            method = f"class activation on the {found.shape[2]} x {found.shape[3]} feature map '{layer}'"
            body = _session(_part(model, entry, info))
            explain = partial(_activation, body, _session(head), preprocessing)
            return Explainer(method, explain, images=36 if len(head.graph.node) <= SHORT_HEAD else 12)
    return Explainer(
        f"occlusion: how far the probability falls when one of {OCCLUDED} x {OCCLUDED} squares is covered",
        partial(_occlusion, forward),
        images=12,  # each takes OCCLUDED ** 2 passes
    )


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of initializers that are also inputs
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _feature_maps(model: onnx.ModelProto, image: npt.NDArray[np.float32]) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """Return the feature maps, fine enough, through which all that is known of the image passes: name, values."""
    last_use = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    alive, cuts = {model.graph.input[0].name}, []
    for i, node in enumerate(model.graph.node):
        if alive & set(node.input):
            alive.update(node.output)
        alive = {name for name in alive if last_use.get(name, -1) > i}
        if alive == {node.output[0]}:
            cuts.append(node.output[0])
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in cuts)
    found = _session(extended).run(cuts, {model.graph.input[0].name: image})  # shapes may be known at run time only
    return [(name, values) for name, values in zip(cuts, found, strict=True) if _is_map(values)]


def _is_map(values: npt.NDArray[Any]) -> bool:
    """Whether a tensor is (1, channels, side, side) of floats with a fine enough side; inputs are square."""
    shape = values.shape
    return len(shape) == 4 and shape[2] == shape[3] >= MIN_MAP and values.dtype == np.float32


def _part(model: onnx.ModelProto, start: onnx.ValueInfoProto, end: onnx.ValueInfoProto) -> onnx.ModelProto:
    """Return the part of ``model`` that computes ``end`` from ``start``."""
    needed, nodes = {end.name}, []
    for node in reversed(model.graph.node):
        if needed & set(node.output) and start.name not in node.output:
            needed.update(node.input)
            nodes.append(node)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = helper.make_graph(nodes[::-1], "part", [start], [end], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _activation(
    body: Any,
    head: Any,
    preprocessing: Preprocessing,
    pixels: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64],
) -> Maps:
    """Return how far the logit falls when a cell of the feature map becomes zero.

    Behind global average pooling and a linear layer this is exactly the class activation map (and Grad-CAM); it needs
    neither weights nor gradients, so that it works for any other head too.
    Source: B. Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """
    (features,) = body.run(None, {body.get_inputs()[0].name: preprocessing.normalize(pixels)})
    layer, side = head.get_inputs()[0].name, features.shape[2]
    others = 1 - np.eye(side * side, dtype=np.float32).reshape(side, side, 1, side, side)
    maps = np.zeros((len(pixels), side, side), dtype=np.float32)
    for i, (found, c) in enumerate(zip(features, classes, strict=True)):
        (whole,) = head.run(None, {layer: found[None]})
        for y in range(side):
            (without,) = head.run(None, {layer: found * others[y]})
            maps[i, y] = np.maximum(whole[0, c] - without[:, c], 0)
    return _scaled(maps)


def _occlusion(
    forward: Callable[[Any], npt.NDArray[np.float32]], pixels: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]
) -> Maps:
    """Source: M. D. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014."""
    edges = np.linspace(0, pixels.shape[1], OCCLUDED + 1).round().astype(int)
    rows = np.arange(len(pixels))
    whole = softmax(forward(pixels))[rows, classes]
    maps = np.zeros((len(pixels), OCCLUDED, OCCLUDED), dtype=np.float32)
    for y in range(OCCLUDED):
        for x in range(OCCLUDED):
            covered = pixels.copy()
            covered[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]] = 128
            maps[:, y, x] = np.maximum(whole - softmax(forward(covered))[rows, classes], 0)
    return _scaled(maps)


def _scaled(maps: Maps) -> Maps:
    top = maps.max(axis=(1, 2), keepdims=True)
    return (maps / np.where(top > 0, top, 1)).astype(np.float32)
