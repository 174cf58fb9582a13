"""What is hashed is what is run: a step's process refuses to do anything else than it was started for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from objrec import train
from objrec.config.cli import overrides_of
from objrec.config.command_line import sort_arguments
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.runner.display import Display
from objrec.runner.runner import new_run_dir, run_pipeline
from objrec.steps import load_steps
from objrec.steps.command import run_step
from objrec.system.processes import ORDER

SMALL = ["classes.names=[apple,pear]", "ingest.num_images=24", "preprocess.image_size=32"]
INGEST = load_steps(("ingest",))


def run(config: list[str], typed: list[str]) -> str:
    """Run ingest as hashed under ``config`` and started with ``typed``; return its status."""
    run_dir = new_run_dir(load_config(config), "pipeline")
    with (run_dir / "pipeline.log").open("a") as log, Display(log) as display:
        return run_pipeline(INGEST, load_config(config), typed, run_dir=run_dir, display=display).steps[0].status


def test_another_configuration_than_the_hashed_one_is_refused_and_nothing_is_stored(workdir: Path) -> None:
    with pytest.raises(UserError, match="step ingest was started for key"):
        run([*SMALL, "seed=7"], SMALL)
    assert not list(workdir.glob(".objrec/cache/ingest/*"))


def test_no_override_reaches_what_the_runner_sets(workdir: Path) -> None:
    (workdir / "thesis").mkdir()
    assert run(SMALL, [*SMALL, "raw_data_dir=thesis", "++raw_data_dir=thesis"]) == "ran"
    assert not list((workdir / "thesis").iterdir())


@pytest.mark.parametrize("order", [{"key": "0" * 32, "inputs": {}}, {"key": "0" * 32, "inputs": {"source_dir": "x"}}])
def test_a_step_compares_its_key_with_its_order(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, order: dict[str, object]
) -> None:
    monkeypatch.setenv(ORDER, json.dumps(order))
    with pytest.raises(UserError, match="would compute"):
        run_step(INGEST[0], [*SMALL, "raw_data_dir=out"])
    assert not (workdir / "out").exists()


FLAGS = ["--config-name", "--config-name=mine", "-cn", "-cn=mine", "--config-path", "-cp", "--config-na", "--config-d"]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("take", [overrides_of, sort_arguments, train.prepare])
def test_another_main_configuration_is_refused_by_every_command(workdir: Path, take: object, flag: str) -> None:
    assert callable(take)
    with pytest.raises(UserError, match=r"--config-dir DIR experiment=NAME"):
        take([flag, "mine"] if "=" not in flag else [flag])


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--conf", "--unknown", "-x"])
def test_other_flags_that_would_run_something_else_are_refused(flag: str) -> None:
    with pytest.raises(UserError, match="unknown flag"):
        sort_arguments([flag])


def test_a_configuration_of_ones_own_is_an_experiment(workdir: Path) -> None:
    folder = workdir / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert load_config(["--config-dir=own", "experiment=mine"]).seed == 7
    train.prepare(["--config-dir", "own", "experiment=mine", "--multirun", "seed=1,2"])
    train.prepare(["-cd=own", "experiment=mine"])
