"""The files of a report that programs read: CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from objrec.evaluation.metrics import UNREADABLE, Predictions

PREDICTION_COLUMNS = (
    "path",
    "sha256",
    "target",
    "prediction",
    "correct",
    "probability",
    "probability_uncalibrated",
    "target_probability",
    "target_probability_uncalibrated",
    "target_rank",
)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys with a header line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def prediction_rows(p: Predictions) -> list[dict[str, Any]]:
    """Return a row for every image of the test folder. An unreadable one has no prediction and no probabilities."""
    rows = []
    names = p.outcome.classes
    for i, path in enumerate(p.outcome.paths):
        known = p.preds[i] != UNREADABLE
        values = (
            path,
            p.outcome.sha256[i],
            names[p.outcome.targets[i]],
            names[p.preds[i]] if known else "",
            int(p.correct[i]),
            *(
                repr(float(column[i])) if known else ""
                for column in (
                    p.confidence,
                    p.raw_confidence,
                    p.target_probability,
                    p.raw_target_probability,
                )
            ),
            int(p.target_rank[i]) if known else "",
        )
        rows.append(dict(zip(PREDICTION_COLUMNS, values, strict=True)))
    return rows
