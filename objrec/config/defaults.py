"""The default values as they are written, for commands that finish before a composition would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from objrec.config.compose import config_dir


def default_values() -> dict[str, Any]:
    """Return ``configs/config.yaml`` without its groups: reading it takes a hundredth of the time of composing."""
    import yaml

    content: dict[str, Any] = yaml.safe_load((Path(config_dir()) / "config.yaml").read_text(encoding="utf-8"))
    return content
