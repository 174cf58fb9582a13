"""Images that seem to be in the wrong folder."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from objrec.evaluation.metrics import Predictions

METHOD: Final = (
    "confident learning: the model gives another class at least the probability that it usually gives to that class's"
    " own images, and gives its own class less"
)


def suspects(p: Predictions) -> list[dict[str, Any]]:
    """Return images whose label is doubtful, the most doubtful first: path, target, suggested, margin.

    An image labelled i counts as j where p(j) >= t(j), the mean probability of j over the images labelled j, and j
    is the most probable of such classes; it is suspected where j is not i. ``margin`` is p(j) - p(i). The model must
    not have been trained on these images.

    Source: C. Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70, 2021.
    """
    readable = np.flatnonzero(p.outcome.readable)
    probabilities, targets = p.probabilities[readable], p.outcome.targets[readable]
    usual = np.full(probabilities.shape[1], np.inf)  # a class without images has no usual probability
    for c in np.flatnonzero(np.bincount(targets)):
        usual[c] = probabilities[targets == c, c].mean()
    eligible = np.where(probabilities >= usual, probabilities, -1.0)
    counts_as = eligible.argmax(axis=1)
    rows = np.arange(len(readable))
    doubtful = (eligible[rows, counts_as] >= 0) & (counts_as != targets)
    margin = probabilities[rows, counts_as] - probabilities[rows, targets]
    found = sorted(np.flatnonzero(doubtful & (margin > 0)), key=lambda i: (-margin[i], i))
    names = p.outcome.classes
    return [
        {
            "index": int(readable[i]),
            "path": p.outcome.paths[readable[i]],
            "target": names[targets[i]],
            "suggested": names[counts_as[i]],
            "margin": float(margin[i]),
        }
        for i in found
    ]
