"""The first two steps under the runner, also as a process that a test can kill: ``pipeline_driver.py OVERRIDE...``"""

from __future__ import annotations

import sys
from pathlib import Path

from objrec.config.load import load_config
from objrec.runner.display import Display
from objrec.runner.runner import RunRecord, new_run_dir, run_pipeline
from objrec.steps import load_steps


def run(overrides: list[str]) -> tuple[RunRecord, Path]:
    config = load_config(overrides)
    run_dir = new_run_dir(config, "pipeline")
    with (run_dir / "pipeline.log").open("a") as log, Display(log) as display:
        steps = load_steps(("ingest", "preprocess"))
        return run_pipeline(steps, config, overrides, run_dir=run_dir, display=display), run_dir


if __name__ == "__main__":
    run(sys.argv[1:])
