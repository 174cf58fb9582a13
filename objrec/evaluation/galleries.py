"""The images of a report: which ones, and how they are put into one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from objrec.evaluation.heatmaps import Explainer
from objrec.evaluation.metrics import Predictions
from objrec.inference.run_folder import Pixels
from objrec.models.card import ModelCard

MAX_SIDE: Final = 112  # pixels: what a card shows on a sharp screen at its width
MAP_SIDE: Final = 28
HOT: Final = ((0.0, (60, 0, 90)), (0.5, (230, 60, 50)), (1.0, (255, 235, 120)))  # value -> colour


@dataclass(frozen=True)
class Card:
    """An image to show: its index, what is said of it, and data URIs of it and of the heat map over it."""

    index: int
    caption: str
    note: str
    image: str
    heat: str | None = None


def surest_mistakes(p: Predictions, count: int) -> list[int]:
    """Return indices of wrong predictions, the most probable first."""
    wrong = np.flatnonzero(p.outcome.readable & ~p.correct)
    return [int(i) for i in sorted(wrong, key=lambda i: (-p.confidence[i], i))[:count]]


def least_certain_rights(p: Predictions, count: int) -> list[int]:
    """Return indices of right predictions, the least probable first."""
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
    """Return data URIs of what spoke for the predicted class, by index."""
    if not indices:
        return {}
    maps = explainer.explain(np.stack([pixels[i] for i in indices]), p.preds[list(indices)])
    return {i: _heat_uri(m) for i, m in zip(indices, maps, strict=True)}


def image_uri(pixels: Pixels) -> str:
    """Return a JPEG data URI, at most ``MAX_SIDE`` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return _uri(image, "JPEG", quality=85)


def _heat_uri(values: npt.NDArray[np.float32]) -> str:
    scaled = Image.fromarray((values * 255).round().astype(np.uint8)).resize(
        (MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC
    )
    share = np.asarray(scaled, dtype=np.float64) / 255
    stops = [at for at, _ in HOT]
    channels = [np.interp(share, stops, [colour[c] for _, colour in HOT]) for c in range(3)]
    rgba = np.stack([*channels, 200 * share], axis=-1).round().astype(np.uint8)
    return _uri(Image.fromarray(rgba).quantize(48), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
