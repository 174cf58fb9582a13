"""What is known of where test images came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from objrec.config.errors import UserError
from objrec.evaluation.metrics import Predictions, wilson
from objrec.inference.run_folder import ModelOutputs

SIZES = (64, 128, 256, 512, 1024)  # pixels of the shorter side: the slices of the size


def read_manifest(raw_data_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of ``manifest.jsonl``; none where there is no such file. Raises UserError for a damaged one."""
    path = raw_data_dir / "manifest.jsonl"
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Count candidates by what became of them, and the kept ones by source and licence, the most frequent first."""
    kept = [row for row in rows if row.get("status") == "kept"]
    return {
        "status": _counted(rows, "status"),
        "source": _counted(kept, "source"),
        "license": _counted(kept, "license"),
    }


def rows_of(outcome: ModelOutputs, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the manifest row of each test image, empty where there is none.

    An image is found by the sha256 of its file, or by its name, which begins with that of the original.
    """
    stems = [Path(path).stem for path in outcome.paths]
    by_hash = {str(row["sha256"]): row for row in rows if row.get("sha256") and row.get("status") == "kept"}
    by_prefix = {(n, sha[:n]): row for n in {len(s) for s in stems if len(s) >= 8} for sha, row in by_hash.items()}
    empty: Mapping[str, Any] = {}
    return [
        by_hash.get(sha) or by_prefix.get((len(stem), stem)) or empty
        for sha, stem in zip(outcome.sha256, stems, strict=True)
    ]


def slice_columns(outcome: ModelOutputs, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return for each slicing the slice of each image: ``size``, and ``source`` and ``license`` where known."""
    columns = {"size": [_size_of(outcome, i, row) for i, row in enumerate(rows)]}
    for name in ("source", "license"):
        values = [str(row.get(name) or "unknown") for row in rows]
        if set(values) != {"unknown"}:
            columns[name] = values
    return columns


def slice_rows(p: Predictions, columns: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return accuracy, interval and count of each slice."""
    found = []
    for by, values in columns.items():
        array = np.array(values, dtype=object)
        for value in sorted(set(values), key=_in_order):
            inside = array == value
            right, n = int(p.correct[inside].sum()), int(inside.sum())
            interval = list(wilson(right, n))
            found.append({"by": by, "slice": value, "num_images": n, "accuracy": right / n, "interval": interval})
    return found


def _counted(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    counts = Counter(str(row.get(name) or "unknown") for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _size_of(outcome: ModelOutputs, index: int, row: Mapping[str, Any]) -> str:
    if row.get("width") and row.get("height"):
        side = min(int(row["width"]), int(row["height"]))
    elif outcome.readable[index]:
        with Image.open(outcome.folder / outcome.paths[index]) as image:
            side = min(image.size)
    else:
        return "unknown"
    above = [s for s in SIZES if side < s]
    return f"under {above[0]} px" if above else f"{SIZES[-1]} px and more"


def _in_order(value: str) -> tuple[int, str]:
    digits = "".join(c for c in value if c.isdigit()) if value.endswith(("px", "more")) else ""
    return (int(digits) + value.endswith("more") if digits else 0, value)
