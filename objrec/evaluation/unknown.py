"""Images that show none of the classes: a score, a threshold, and how well they part known from unknown.

The threshold is chosen on validation data by ``choose``, travels in ``model.json`` under ``unknown``, and is applied by
``objrec.inference.predictor.Predictor.known_score``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from objrec.inference.scores import Floats, known_score
from objrec.models.card import UNKNOWN_SCORES

KEEP: Final = 0.95  # share of validation images that stay known: the usual operating point in the literature


def choose(logits: Floats, *, temperature: float, outlier_logits: Floats) -> dict[str, Any]:
    """Choose score and threshold on validation data.

    Args:
        logits: (N, classes) of the validation images.
        temperature: that of the model, as in ``model.json``.
        outlier_logits: (M, classes) of images without any class, such as those of ``outlier_pixels``.

    Returns:
        What ``model.json`` keeps under ``unknown``: ``score``, ``threshold`` (images below it are unknown; ``KEEP``
        of the validation images are above it), ``keep``, ``auroc`` (against the outliers) and ``num_images``.
    """
    found: dict[str, tuple[float, npt.NDArray[np.float64]]] = {}
    for method in UNKNOWN_SCORES:
        known = known_score(logits, method, temperature)
        found[method] = auroc(known, known_score(outlier_logits, method, temperature)), known
    best = max(UNKNOWN_SCORES, key=lambda method: round(found[method][0], 3))
    area, known = found[best]
    return {
        "score": best,
        "threshold": float(np.quantile(known, 1 - KEEP, method="lower")) if len(known) else 0.0,
        "keep": KEEP,
        "auroc": round(area, 6),
        "num_images": len(known),
    }


def auroc(known: Floats, unknown: Floats) -> float:
    """Return how often a known image scores above an unknown one, ties counted half; nan for no images."""
    if len(known) == 0 or len(unknown) == 0:
        return float("nan")
    below = np.searchsorted(np.sort(unknown), known, side="left")
    below_or_equal = np.searchsorted(np.sort(unknown), known, side="right")
    return float((below + below_or_equal).sum() / (2 * len(known) * len(unknown)))


def outlier_pixels(size: int, count: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Draw images of nothing, noise, soft blobs, stripes, gradients in turn: uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(seed)
    kinds = (_noise, _blobs, _stripes, _gradient)
    return np.stack([kinds[i % len(kinds)](size, rng) for i in range(count)])


def _noise(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


def _blobs(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    from PIL import Image

    cells = int(rng.integers(3, 7))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _stripes(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    angle, cycles = rng.uniform(0, np.pi), rng.uniform(2, size / 6)
    y, x = np.mgrid[:size, :size] / size
    wave = np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)))[..., None] / 2 + 0.5
    return _between(wave, rng)


def _gradient(size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    ramp = (x * np.cos(angle) + y * np.sin(angle))[..., None] / 1.5 + 0.5
    return _between(ramp, rng)


def _between(share: Floats, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    first, second = rng.integers(0, 256, (2, 3))
    mixed: npt.NDArray[np.uint8] = (first + share * (second - first)).round().clip(0, 255).astype(np.uint8)
    return mixed
