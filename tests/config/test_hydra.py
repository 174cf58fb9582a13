"""Hydra's documented features against ours: one test a row of the table in docs/configuration.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from objrec import train
from objrec.config.command_line import check_command_line, sort_arguments
from objrec.config.errors import UserError
from objrec.config.schema import Config

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
WORKS = [
    ["train.max_epochs=3"],
    ["optimizer=sgd"],
    ["+callbacks.mine={_target_: my.Callback}"],
    ["++train.max_epochs=3"],
    ["~callbacks.checkpoint"],
    ["experiment=quick"],
    ["hydra.verbose=true"],
    ["hydra.job.name=mine"],
    ["hydra/job_logging=disabled"],
    ["hydra.job.chdir=false"],
    ["-m", "optimizer=sgd,adamw"],
    ["hydra.mode=MULTIRUN", "optimizer=sgd,adamw"],
    ["-m", "optimizer=glob(*)"],
    ["-m", "optimizer=glob(*, exclude=muon)"],
    ["-m", "seed=range(1,4)"],
    ["-m", "sweep=grid"],
    ["-m", "train.loss=cross_entropy,focal", "train.focal_gamma=1,2"],
    ["-m", "augmentation.name=none,trivial", "augmentation.flip=0.0,0.5", "augmentation.flip_mode=random,alternate"],
    ["-m", "train.loss=cross_entropy,focal", "train.focal_gamma=1"],
    ["-m", "hydra/launcher=basic", "seed=1,2"],
    ["--info", "config"],
    ["--info"],
    ["--cfg", "job", "--resolve"],
    ["--cfg", "hydra"],
    ["--cfg", "job", "--package", "train"],
    ["-sc", "install=bash"],
    ["--shell-completion", "query=bash"],
    ["--hydra-help"],
    ["--version"],
]
REFUSED = [
    (["hydra.run.dir=x"], "run_dir=DIR"),
    (["hydra.sweep.dir=x"], "run_dir=DIR"),
    (["-m", "hydra.sweep.subdir=x", "seed=1,2"], "a trial's folder has its number"),
    (["hydra.output_subdir=null"], "run_dir=DIR"),
    (["hydra.job.chdir=true"], "paths in the settings are relative"),
    (["hydra.searchpath=[file:///x]"], "--config-dir DIR"),
    (["hydra/sweeper=basic"], "sweep=grid"),
    (["hydra.sweeper.max_batch_size=2"], "sweep.max_concurrent_trials"),
    (["--config-name", "mine"], "experiment=NAME"),
    (["--config-path=mine"], "experiment=NAME"),
    (["-m", "seed=1,2", "--cfg", "job"], "--cfg shows one configuration"),
    (["-m", "hydra.mode=RUN"], "contradict"),
    (["--multi", "seed=1,2"], "Did you mean --multirun"),
    (["--experimental-rerun=x"], "unknown flag"),
    (["--config-dir", "nowhere"], "--config-dir=nowhere: there is no such folder"),
    (["--config-dir", "nowhere", "--cfg", "job"], "--config-dir=nowhere: there is no such folder"),
    (["sweep=grid"], "python -m objrec.train -m sweep=grid"),
    (["sweep.max_trials=4"], "python -m objrec.train -m sweep.max_trials=4"),
    (["-m", "sweep=grid", "sweep.max_trials=4"], "the grid has 6 combinations"),
    (["-m", "optimizer=glob(z*)"], "no file of this group"),
    (["-m", "seed=glob(*)"], "chooses among the files of a group"),
    (["-m", "train.focal_gamma=1,2"], "it needs train.loss=focal"),
    (["-m", "train.batch_size=16,0"], "train.batch_size: should be a whole number of at least 1"),
    (["seed=1,2"], "multiple values need -m"),
]


def check(arguments: list[str]) -> Config | None:
    return check_command_line(sort_arguments(arguments))


@pytest.mark.parametrize("arguments", WORKS, ids=" ".join)
def test_works(arguments: list[str]) -> None:
    check(arguments)


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[" ".join(r[0]) for r in REFUSED])
def test_is_refused_with_the_reason(arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check(arguments)


def test_the_table_in_the_docs_has_these_rows() -> None:
    rows = set(re.findall(r"^\| `([^`]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE))
    assert {" ".join(a) for a in [*WORKS, *(a for a, _ in REFUSED)]} <= rows


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for name, text in {
        "optimizer/mine": "_target_: torch.optim.SGD\nlr: ${train.learning_rate}\nmomentum: 0.5\n",
        "experiment/nopackage": "train:\n  max_epochs: 3\n",
        "experiment/broken": "# @package _global_\ntrain:\n  max_epochs: [3\nseed: 1\n",
        "sweep/mine": "# @package _global_\nhydra:\n  sweeper:\n    params:\n      train.max_epochs: choice(1,0)\n",
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_files_of_ones_own_can_be_swept(own: Path) -> None:
    folder = ["--config-dir", str(own)]
    config = check(["-m", *folder, "optimizer=mine,sgd"])
    assert config is not None and config.optimizer["momentum"] == 0.5
    assert check(["-m", *folder, "optimizer=glob(m*)"])
    with pytest.raises(UserError, match=r"train\.max_epochs=0: should be at least 1"):
        check(["-m", *folder, "sweep=mine"])


def test_the_arguments_reach_hydra_in_an_order_that_it_takes(own: Path) -> None:
    line = sort_arguments(["seed=1,2", "-m", "--config-dir", str(own), "optimizer=mine", "source.path=a b"])
    assert line.for_hydra == ["seed=1,2", "optimizer=mine", "source.path='a b'", "--config-dir", str(own)]


@pytest.mark.parametrize("show", [[], ["--cfg", "job"]], ids=["run", "cfg"])
def test_a_fault_in_a_file_is_told_with_its_name_and_line(own: Path, show: list[str]) -> None:
    with pytest.raises(UserError, match=r"broken\.yaml:4(:\d+)?: not valid YAML"):
        check(["--config-dir", str(own), "experiment=broken", *show])


def test_a_missing_package_line_is_named(own: Path) -> None:
    with pytest.raises(UserError, match="# @package _global_"):
        check(["--config-dir", str(own), "experiment=nopackage"])


def test_hydra_finds_the_sweeper_and_completes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra.core.plugins import Plugins

    assert "hydra_plugins.objrec_trial_sweeper.TrialSweeper" in Plugins.instance().class_name_to_class
    monkeypatch.setenv("COMP_LINE", "objrec-train optimizer=s")
    monkeypatch.setattr(sys, "argv", ["objrec-train", "-sc", "query=bash"])
    train.main()
    assert "optimizer=sgd" in capsys.readouterr().out
