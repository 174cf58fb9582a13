"""The ingest step, run and checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from objrec.config.load import load_config
from objrec.steps.base import restrict
from objrec.steps.ingest import STEP


def ingest(target: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run the step as the runner would and return the manifest."""
    target.mkdir()
    config = load_config([f"cache_dir={target.parent / 'cache'}", *overrides])
    inputs = {"source_dir": Path(config.source.path)} if config.source.path else {}
    STEP.run(restrict(config, STEP), inputs, {"raw_data_dir": target})
    rows = [json.loads(line) for line in (target / "manifest.jsonl").read_text().splitlines()]
    check(target, rows)
    return rows


def check(target: Path, rows: list[dict[str, Any]]) -> None:
    """What holds for every data set: the kept rows and the files are one and the same."""
    files = {p.relative_to(target).as_posix() for p in target.glob("*/*")}
    assert files == {r["file"] for r in rows if r["status"] == "kept"}
    for row in rows:
        assert (row["status"] == "kept") == (row["reason"] is None) == (row["file"] is not None)
        if row["file"]:
            assert hashlib.sha256((target / row["file"]).read_bytes()).hexdigest() == row["sha256"]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
