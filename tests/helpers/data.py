"""Real images beside the checkout, for tests that skip without them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"


def shared_file(name: str) -> Path:
    """Return a file of real images beside the checkout, or skip the test where it is not there."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"needs {name}")
    return path
