"""Verify, deduplicate, crop, split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from objrec.config.schema import Config
from objrec.steps.base import Port, make_step


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Verify, remove duplicates, crop to a consistent size and split without leakage."""
    from objrec.preprocess.dataset import build

    build(config, inputs["raw_data_dir"], outputs)


STEP = make_step(
    name="preprocess",
    inputs=(Port(name="raw_data_dir"),),
    outputs=tuple(Port(name=f"{split}_dir") for split in ("train", "valid", "test")),
    reads=("preprocess", "images", "seed"),
    libraries=("pillow", "pi-heif", "simplejpeg", "cykooz-resizer", "numpy"),
)(run)

if __name__ == "__main__":
    from objrec.steps.command import main

    main(STEP)
