"""Where in an image the model found its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from objrec.evaluation.gradients import GRADIENT, SEED, NoRuleError, gradient_model, shapes_of
from objrec.images.preprocessing import Preprocessing
from objrec.inference.scores import softmax

MIN_MAP: Final = 4  # cells a side: a coarser map says "somewhere in the image"
OCCLUDED: Final = 5  # squares a side that are covered in turn where gradients cannot be had

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
    """Return Grad-CAM where ``model.onnx`` can be differentiated, else occlusion by ``forward`` (pixels -> logits)."""
    model = onnx.load(model_dir / "model.onnx")
    shapes = shapes_of(model)
    for layer, size in _cut_maps(model, shapes):
        try:
            extended = gradient_model(model, layer, shapes)
        except NoRuleError:
            continue
        method = f"Grad-CAM on the {size[0]} x {size[1]} feature map '{layer}'"
        return Explainer(method, partial(_grad_cam, _session(extended), preprocessing, layer), images=36)
    return Explainer(
        f"occlusion: how far the probability falls when one of {OCCLUDED} x {OCCLUDED} squares is covered",
        partial(_occlusion, forward),
        images=12,  # each takes OCCLUDED ** 2 passes
    )


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of initializers that only the gradient uses
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _cut_maps(model: onnx.ModelProto, shapes: Mapping[str, list[int | None]]) -> list[tuple[str, tuple[int, int]]]:
    """Return (name, (height, width)) of feature maps that everything passes through, those worth trying, best first.

    The last one of at least ``MIN_MAP`` cells a side is best: later maps know more of the classes.
    """
    graph = model.graph
    found: list[tuple[str, tuple[int, int]]] = []
    for node in graph.node:
        shape = shapes.get(node.output[0], [])
        if len(shape) == 4 and shape[2] and shape[3] and shape[2] * shape[3] > 1 and _cuts(graph, node.output[0]):
            found.append((node.output[0], (shape[2], shape[3])))
    fine = [f for f in found if min(f[1]) >= MIN_MAP]
    return [*fine[-1:], *found[-1:]]


def _cuts(graph: onnx.GraphProto, tensor: str) -> bool:
    """Whether every way from the input to the output leads through ``tensor``."""
    reached = {graph.input[0].name}
    for node in graph.node:
        if reached & set(node.input):
            reached.update(o for o in node.output if o != tensor)
    return graph.output[0].name not in reached


def _grad_cam(
    session: Any,
    preprocessing: Preprocessing,
    layer: str,
    pixels: npt.NDArray[np.uint8],
    classes: npt.NDArray[np.int64],
) -> Maps:
    """Source: R. R. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks", ICCV 2017, equations 1, 2."""
    names = {i.name: i.shape for i in session.get_inputs()}
    seed = np.zeros((len(pixels), names[SEED][1]), dtype=np.float32)
    seed[np.arange(len(pixels)), classes] = 1
    first = session.get_inputs()[0].name
    maps, gradients = session.run([layer, GRADIENT], {first: preprocessing.normalize(pixels), SEED: seed})
    weights = gradients.mean(axis=(2, 3), keepdims=True)
    return _scaled(np.maximum((weights * maps).sum(axis=1), 0))


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
