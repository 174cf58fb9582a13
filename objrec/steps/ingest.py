"""The first step: from class names to a data set with a row of provenance for every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from objrec.config.environment import AZURE, SEARCH
from objrec.config.schema import Config
from objrec.steps.base import Port, make_step


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Build a data set for the class names from a source."""
    from objrec.ingest.dataset import build

    build(config, inputs.get("source_dir"), outputs["raw_data_dir"])


STEP = make_step(
    name="ingest",
    inputs=(Port(name="source_dir", optional=True, config="source.path"),),
    outputs=(Port(name="raw_data_dir"),),
    reads=("seed", "classes", "source", "ingest", "images", "cache_dir"),
    secrets=(*SEARCH, *AZURE),
    libraries=("pillow", "pi-heif", "simplejpeg", "numpy"),
)(run)


if __name__ == "__main__":
    from objrec.steps.command import main

    main(STEP)
