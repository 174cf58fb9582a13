"""From logits to probabilities, and to a score for images that show none of the classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def softmax(logits: Floats, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return softmax(logits / temperature) along the last axis, in float64."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def known_score(logits: Floats, method: str, temperature: float) -> npt.NDArray[np.float64]:
    """Return (N,) scores of (N, classes) logits, higher for images more like those of the classes.

    ``max_probability`` is the calibrated probability of the predicted class (Hendrycks and Gimpel, ICLR 2017);
    ``energy`` is log sum exp of the logits (Liu et al., NeurIPS 2020).
    """
    if method == "max_probability":
        return softmax(logits, temperature).max(axis=-1)  # type: ignore[no-any-return]
    assert method == "energy", method
    z = logits.astype(np.float64)
    top = z.max(axis=-1)
    return top + np.log(np.exp(z - top[..., None]).sum(axis=-1))  # type: ignore[no-any-return]
