"""A step is added by one file and its name in ``objrec.steps.NAMES``: everything else follows its declaration."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objrec import steps
from objrec.config.load import load_config
from objrec.runner.display import Display
from objrec.runner.runner import run_pipeline
from objrec.steps.base import leading_to
from objrec.steps.command import help_text
from objrec.steps.keys import SourceIndex, key_parts

SIXTH = '''
from objrec.steps.base import Port, make_step


@make_step(
    name="archive",
    cached=False,
    inputs=(Port(name="model_dir"),),
    outputs=(Port(name="export_dir"),),
    reads=("seed",),
)
def STEP(config, inputs, outputs):
    """Put a model aside."""
    outputs["export_dir"].mkdir(parents=True)
    names = sorted(p.name for p in inputs["model_dir"].iterdir())
    (outputs["export_dir"] / "seed.txt").write_text(f"{config.seed} {names}")
'''


@pytest.fixture
def sixth(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    folder = workdir / "more"
    folder.mkdir()
    (folder / "archive.py").write_text(SIXTH)
    monkeypatch.setattr(steps, "__path__", [*steps.__path__, str(folder)])
    monkeypatch.setattr(steps, "NAMES", (*steps.NAMES, "archive"))
    monkeypatch.setattr(steps.load_steps, "__defaults__", (steps.NAMES,))
    importlib.invalidate_caches()
    yield steps.load_steps()[-1]
    sys.modules.pop("objrec.steps.archive", None)


def test_the_runner_runs_it_after_what_it_reads(sixth: Any, workdir: Path) -> None:
    (workdir / "model").mkdir()
    (workdir / "model" / "model.json").write_text("{}")
    run_dir = workdir / "run"
    run_dir.mkdir()
    config = load_config(["model_dir=model", "seed=7"])
    five = leading_to(steps.load_steps(), "model_dir")
    with (run_dir / "log").open("w") as log, Display(log) as display:
        record = run_pipeline([*five, sixth], config, ["model_dir=model", "seed=7"], run_dir=run_dir, display=display)
    assert [(s.name, s.status) for s in record.steps] == [
        *((s.name, "given") for s in five),
        ("archive", "ran"),
    ]
    written = Path(record.step("archive").outputs["export_dir"])
    assert (written / "seed.txt").read_text() == "7 ['model.json']"


def test_its_help_comes_from_its_declaration(sixth: Any) -> None:
    text = help_text(sixth)
    assert "Put a model aside." in text and "model_dir=PATH" in text and "export_dir=PATH" in text and "  seed" in text


def test_the_cloud_job_has_a_node_for_it(sixth: Any, workdir: Path) -> None:
    import yaml

    from objrec.submit.command import run

    assert run(["dry_run=true"]) in (0, None)
    (written,) = (workdir / "runs" / "azure").glob("*/job.yaml")
    node = yaml.safe_load(written.read_text())["jobs"]["archive"]
    assert node["inputs"]["model_dir"] == {"path": "${{parent.jobs.train.outputs.model_dir}}"} or (
        node["inputs"]["model_dir"] == "${{parent.jobs.train.outputs.model_dir}}"
    )
    assert "python -m objrec.steps.archive" in str(node["component"]["command"])


def test_it_runs_no_other_step_again(sixth: Any, tmp_path: Path) -> None:
    config, index = load_config(), SourceIndex(tmp_path / "sources.json")
    for step in steps.load_steps()[:-1]:
        parts = key_parts(step, config, {}, index)
        assert not any("archive" in name or name == "objrec/steps/__init__.py" for name in parts.sources)
