"""The two environments: azureml/environment/steps for the steps, azureml/environment/scoring for the endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or of the snapshot


def context_version(folder: Path) -> str:
    """Return 12 hex digits of the names and contents of a build context: what is the same is built once.


    """
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]
