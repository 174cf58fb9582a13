"""Two models on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from objrec.evaluation.metrics import UNREADABLE, Predictions, per_class, summarize
from objrec.inference.paired_test import mcnemar


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Return both summaries, the paired test and the indices of images on which the two differ.

    Args:
        first, second: of the same images in the same order; the models may order their classes differently.
    """
    assert first.outcome.paths == second.outcome.paths
    only_first = first.correct & ~second.correct
    only_second = ~first.correct & second.correct
    differ = _names(first) != _names(second)
    mine, theirs = {r["class"]: r for r in per_class(first)}, {r["class"]: r for r in per_class(second)}
    tested = [name for name, row in mine.items() if row["support"]]
    return {
        "other": summarize(second),
        "both_right": int((first.correct & second.correct).sum()),
        "only_this_right": int(only_first.sum()),
        "only_other_right": int(only_second.sum()),
        "both_wrong": int((~first.correct & ~second.correct).sum()),
        "mcnemar_p": mcnemar(int(only_first.sum()), int(only_second.sum())),
        "num_different": int(differ.sum()),
        "recall": [{"class": n, "this": mine[n]["recall"], "other": theirs[n]["recall"]} for n in tested],
    }


def differing(first: Predictions, second: Predictions) -> list[int]:
    """Return indices of images that just one of the two has right, the surest wrong answers first."""
    wrong = np.where(first.correct, second.confidence, first.confidence)
    chosen = np.flatnonzero(first.correct != second.correct)
    return [int(i) for i in sorted(chosen, key=lambda i: (-wrong[i], i))]


def prediction_names(p: Predictions) -> list[str]:
    """Return the predicted class of each image, empty for an unreadable one."""
    return [p.outcome.classes[i] if i != UNREADABLE else "" for i in p.preds]


def _names(p: Predictions) -> np.ndarray[Any, Any]:
    return np.array(prediction_names(p), dtype=object)
