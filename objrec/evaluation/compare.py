"""Two models on the same pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from objrec.evaluation.metrics import UNREADABLE, Predictions, per_class, summarize


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value that two models are equally good, from the pictures that only one has right.

    The exact binomial form. Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12, 1947.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


def compare(first: Predictions, second: Predictions) -> dict[str, Any]:
    """Return both summaries, the paired test and the indices of pictures on which the two differ.

    Args:
        first, second: of the same pictures in the same order; the models may order their classes differently.
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
    """Return indices of pictures that just one of the two has right, the surest wrong answers first."""
    wrong = np.where(first.correct, second.confidence, first.confidence)
    chosen = np.flatnonzero(first.correct != second.correct)
    return [int(i) for i in sorted(chosen, key=lambda i: (-wrong[i], i))]


def prediction_names(p: Predictions) -> list[str]:
    """Return the predicted class of each picture, empty for an unreadable one."""
    return [p.outcome.classes[i] if i != UNREADABLE else "" for i in p.preds]


def _names(p: Predictions) -> np.ndarray[Any, Any]:
    return np.array(prediction_names(p), dtype=object)
