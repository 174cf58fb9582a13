"""How the examiner processes of a test are set up."""

from __future__ import annotations

from pathlib import Path

from objrec.ingest.examiner import Setup


def setup(folder: Path) -> Setup:
    (folder / "out" / "cat").mkdir(parents=True, exist_ok=True)
    return Setup(max_pixels=10**7, min_size=8, target=str(folder / "out"), store=str(folder / "store"), limits="a")
