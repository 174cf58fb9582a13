"""The images of a report: which ones, and how they are put into the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from objrec.evaluation.heatmaps import Explainer
from objrec.evaluation.metrics import Predictions
from objrec.inference.run_folder import Pixels
from objrec.models.card import ModelCard
from objrec.reports.html import THUMBNAIL, data_uri

MAP_SIDE: Final = 28
HOT: Final = ((0.0, (60, 0, 90)), (0.5, (230, 60, 50)), (1.0, (255, 235, 120)))  # value -> colour


@dataclass(frozen=True)
class ModelAnswer:
    """What a model says about an image; ``confidence`` is a probability in [0, 1]."""

    label: str
    confidence: float
    correct: bool


@dataclass(frozen=True)
class Card:
    """An image to show: data URIs of it and of its heat map ("" without one), its label, each model's answer."""

    path: str
    image: str
    heat: str
    target: str
    answers: Sequence[ModelAnswer]


def make_cards(
    indices: Sequence[int], models: Sequence[Predictions], images: Mapping[int, str], heats: Mapping[int, str]
) -> list[Card]:
    """Return cards of the images at ``indices`` that have data URIs in ``images``."""
    outcome = models[0].outcome
    return [
        Card(
            outcome.paths[i],
            images[i],
            heats.get(i, ""),
            outcome.classes[outcome.targets[i]],
            [ModelAnswer(p.outcome.classes[p.preds[i]], float(p.confidence[i]), bool(p.correct[i])) for p in models],
        )
        for i in indices
        if i in images
    ]


def confident_errors(p: Predictions, count: int) -> list[int]:
    """Return indices of wrong predictions, the most probable first."""
    wrong = np.flatnonzero(p.outcome.readable & ~p.correct)
    return [int(i) for i in sorted(wrong, key=lambda i: (-p.confidence[i], i))[:count]]


def uncertain_correct(p: Predictions, count: int) -> list[int]:
    """Return indices of correct predictions, the least probable first."""
    right = np.flatnonzero(p.correct)
    return [int(i) for i in sorted(right, key=lambda i: (p.confidence[i], i))[:count]]


def load_pixels(p: Predictions, card: ModelCard, indices: Sequence[int], *, max_pixels: int) -> dict[int, Pixels]:
    """Decode images again, as the model sees them: keeping all of them would fill the memory."""
    outcome = p.outcome
    return {
        i: card.preprocessing.pixels(outcome.folder / outcome.paths[i], max_pixels=max_pixels)
        for i in sorted(set(indices))
        if outcome.readable[i]
    }


def heat_maps(
    explainer: Explainer, p: Predictions, pixels: dict[int, Pixels], indices: Sequence[int]
) -> dict[int, str]:
    """Return data URIs of what supports the predicted class, by index."""
    maps = explainer.explain(np.stack([pixels[i] for i in indices]), p.preds[list(indices)])
    return {i: _heat_uri(m) for i, m in zip(indices, maps, strict=True)}


def image_uri(pixels: Pixels) -> str:
    """Return a JPEG data URI, at most ``THUMBNAIL`` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG", quality=85)


def _heat_uri(values: npt.NDArray[np.float32]) -> str:
    scaled = Image.fromarray((values * 255).round().astype(np.uint8)).resize(
        (MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC
    )
    share = np.asarray(scaled, dtype=np.float64) / 255
    stops = [at for at, _ in HOT]
    channels = [np.interp(share, stops, [colour[c] for _, colour in HOT]) for c in range(3)]
    rgba = np.stack([*channels, 200 * share], axis=-1).round().astype(np.uint8)
    return data_uri(Image.fromarray(rgba).quantize(48), "PNG", optimize=True)
