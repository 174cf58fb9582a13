"""The numbers of an evaluation, each of which ``predictions.csv`` recomputes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from objrec.evaluation.calibration import expected_calibration_error, reliability
from objrec.inference.run_folder import ModelOutputs
from objrec.inference.scores import softmax

TOP_K: Final = (2, 3, 5)
UNREADABLE: Final = -1  # in place of a predicted class


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What follows from an outcome for each of N images; nothing here is rounded.

    Attributes:
        probabilities: (N, C) calibrated; rows of unreadable images are uniform.
        preds: (N,) predicted class, ``UNREADABLE`` for an image that could not be decoded.
        confidence: (N,) calibrated probability of the prediction; 0 for unreadable images.
        raw_confidence: likewise, before temperature scaling.
        target_probability: (N,) calibrated probability of the right class.
        raw_target_probability: likewise, before temperature scaling.
        target_rank: (N,) 1 where the right class is the most probable; C + 1 for unreadable images.
        correct: (N,).
    """

    outcome: ModelOutputs
    temperature: float
    probabilities: npt.NDArray[np.float64]
    preds: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    raw_confidence: npt.NDArray[np.float64]
    target_probability: npt.NDArray[np.float64]
    raw_target_probability: npt.NDArray[np.float64]
    target_rank: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


def predictions_of(outcome: ModelOutputs, temperature: float) -> Predictions:
    """Turn logits into predictions; equal probabilities go to the class that comes first, as everywhere."""
    rows = np.arange(len(outcome.targets))
    probabilities, raw = softmax(outcome.logits, temperature), softmax(outcome.logits)
    preds = np.where(outcome.readable, probabilities.argmax(axis=1), UNREADABLE)
    own = probabilities[rows, outcome.targets][:, None]
    earlier = np.arange(len(outcome.classes))[None] < outcome.targets[:, None]
    rank = 1 + (probabilities > own).sum(axis=1) + ((probabilities == own) & earlier).sum(axis=1)
    return Predictions(
        outcome=outcome,
        temperature=temperature,
        probabilities=probabilities,
        preds=preds,
        confidence=np.where(outcome.readable, probabilities.max(axis=1), 0.0),
        raw_confidence=np.where(outcome.readable, raw.max(axis=1), 0.0),
        target_probability=own[:, 0],
        raw_target_probability=raw[rows, outcome.targets],
        target_rank=np.where(outcome.readable, rank, len(outcome.classes) + 1),
        correct=preds == outcome.targets,
    )


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a share; ``z`` of the default gives 95 %.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def summarize(p: Predictions) -> dict[str, Any]:
    """Return the headline numbers.

    Accuracy, top-k, recall and F1 count unreadable images as wrong. Log loss and calibration errors, which need a
    probability, are means over the readable ones. Macro means are over the classes that have a test image.
    """
    readable = p.outcome.readable
    n, right = len(p.correct), int(p.correct.sum())
    rows = [row for row in per_class(p) if row["support"]]
    correct = p.correct[readable]
    return {
        "accuracy": right / n,
        "confidence_interval": list(wilson(right, n)),
        "num_images": n,
        "num_correct": right,
        "num_unreadable": int((~readable).sum()),
        "num_classes": len(p.outcome.classes),
        "num_classes_tested": len(rows),
        "top_k": {str(k): float((p.target_rank <= k).mean()) for k in TOP_K if k < len(p.outcome.classes)},
        "macro_precision": _mean([row["precision"] for row in rows]),
        "macro_recall": _mean([row["recall"] for row in rows]),
        "macro_f1": _mean([row["f1"] for row in rows]),
        "log_loss": _log_loss(p.target_probability[readable]),
        "log_loss_uncalibrated": _log_loss(p.raw_target_probability[readable]),
        "ece": expected_calibration_error(p.confidence[readable], correct),
        "ece_uncalibrated": expected_calibration_error(p.raw_confidence[readable], correct),
        "temperature": p.temperature,
    }


def per_class(p: Predictions) -> list[dict[str, Any]]:
    """Return a row for each class of the model: support, predicted, correct, precision, recall, f1, top confusion.

    Precision of a class that was never predicted and recall of one without images are 0.
    """
    matrix = confusion_matrix(p)
    rows = []
    for i, name in enumerate(p.outcome.classes):
        support, predicted, right = int(matrix[i].sum()), int(matrix[:, i].sum()), int(matrix[i, i])
        wrong = matrix[i, :-1].copy()
        wrong[i] = 0
        rows.append(
            {
                "class": name,
                "support": support,
                "predicted": predicted,
                "correct": right,
                "unreadable": int(matrix[i, -1]),
                "precision": right / predicted if predicted else 0.0,
                "recall": right / support if support else 0.0,
                "f1": 2 * right / (support + predicted) if support + predicted else 0.0,
                "most_confused_with": p.outcome.classes[int(wrong.argmax())] if wrong.any() else "",
            }
        )
    return rows


def confusion_matrix(p: Predictions) -> npt.NDArray[np.int64]:
    """Return (C, C + 1) counts: row = target, column = prediction, the last column = unreadable."""
    classes = len(p.outcome.classes)
    columns = np.where(p.preds == UNREADABLE, classes, p.preds)
    return np.bincount(p.outcome.targets * (classes + 1) + columns, minlength=classes * (classes + 1)).reshape(
        classes, classes + 1
    )


def reliability_rows(p: Predictions) -> dict[str, list[dict[str, float]]]:
    """Return the bins of the reliability diagram, after and before temperature scaling."""
    readable = p.outcome.readable
    correct = p.correct[readable]
    return {
        "calibrated": [b.as_dict() for b in reliability(p.confidence[readable], correct)],
        "uncalibrated": [b.as_dict() for b in reliability(p.raw_confidence[readable], correct)],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _log_loss(probabilities: npt.NDArray[np.float64]) -> float:
    if len(probabilities) == 0:
        return 0.0
    return float(-np.log(np.maximum(probabilities, np.finfo(np.float64).eps)).mean())
