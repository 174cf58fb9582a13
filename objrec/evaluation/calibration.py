"""Do probabilities mean what they say? Temperature scaling and the calibration error."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from objrec.inference.scores import Floats, softmax

Ints = npt.NDArray[np.integer]

TEMPERATURES: Final = (
    0.2,
    10.0,
)  # a handful of validation images, all right, must not make a model sure of everything
BINS: Final = 15


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the temperature that minimises the negative log likelihood of ``softmax(logits / temperature)``.

    Args:
        logits: (N, classes), of images that were not trained on.
        targets: (N,), indices of the right classes.

    Returns:
        A value within ``TEMPERATURES``; 1.0 for no images. Deterministic.

    The likelihood is concave in 1 / temperature, so halving the interval where its slope changes sign finds the
    optimum. Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if len(logits) == 0:
        return 1.0
    z = logits.astype(np.float64)
    right = z[np.arange(len(z)), targets]

    def slope(inverse: float) -> float:
        return float(((softmax(z, 1 / inverse) * z).sum(axis=1) - right).mean())

    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return round(2 / (low + high), 6)


@dataclass(frozen=True)
class Bin:
    """Predictions with a probability in (low, high]: how many, their mean probability, the share of right ones."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def reliability(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """Sort predictions into bins of equal width by their probability; empty bins are left out.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it is the target.
    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for i in np.flatnonzero(np.bincount(index)):  # np.unique would import numpy.ma first, 0.1 s
        inside = index == i
        found.append(
            Bin(
                float(edges[i]),
                float(edges[i + 1]),
                int(inside.sum()),
                float(confidence[inside].mean()),
                float(correct[inside].mean()),
            )
        )
    return found


def expected_calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the mean distance between probability and accuracy over bins of equal width, weighted by their counts.

    Source: M. P. Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    if len(confidence) == 0:
        return 0.0
    return sum(b.count * abs(b.confidence - b.accuracy) for b in reliability(confidence, correct, bins)) / len(
        confidence
    )
