"""Sweeps: what is varied, trials that fail or are killed, sweeps that are carried on, what is shown at the end."""

from __future__ import annotations

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import sweep_jobs
from PIL import Image

from objrec.config.errors import UserError
from objrec.config.load import config_dir, dump, load_config
from objrec.config.search_space import Choice, Interval, check_values, combinations, read_space
from objrec.sweeps import board
from objrec.sweeps import trial_run as job
from objrec.sweeps.chart import draw
from objrec.sweeps.plan import Grid, Sampled
from objrec.sweeps.sweeper import _build_data, _check, _identity, _locked, run_there
from objrec.sweeps.trial import TrialResult
from objrec.training.callbacks.trial_report import report_epoch

SWEEPS = sorted(p.stem for p in (Path(config_dir()) / "sweep").glob("*.yaml"))
RATES = "train.learning_rate=0.01,0.02,0.04"
OPTUNA = ["sweep=optuna", "train.learning_rate=interval(0.001,0.1)"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))


def test_the_command_line_wins_over_the_file() -> None:
    params = {"train.learning_rate": "interval(0.1, 1)", "train.momentum": "choice(0.8,0.9)", "seed": 3}
    fixed, space = read_space(params, ["train.learning_rate=0.5", "optimizer=sgd,adamw", "compute=cpu"])
    assert fixed == ["seed=3", "train.learning_rate=0.5", "compute=cpu"]
    assert space == {"train.momentum": Choice(("0.8", "0.9")), "optimizer": Choice(("sgd", "adamw"))}
    assert len(list(combinations(space))) == 4


def test_intervals_keep_their_scale_and_kind() -> None:
    words = ["a=tag(log, interval(0.001, 1))", "b=int(interval(16, 64))", "c=range(1,4)"]
    _, space = read_space({}, words)
    assert space == {
        "a": Interval(0.001, 1, log=True, whole=False),
        "b": Interval(16, 64, log=False, whole=True),
        "c": Choice(("1", "2", "3")),
    }
    assert space["b"].samples() == ["16", "64"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=interval(2, 1)"], "from the smaller"),
        (["a=tag(log, interval(0, 1))"], "should start above 0"),
        (["a=choice(1"], "cannot be read"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_space({}, words)


def test_values_are_tried_on_the_configuration_before_the_sweep() -> None:
    _, space = read_space({}, ["train.learning_rate=interval(-1,1)", "optimizer=sgd,adamm"])
    with pytest.raises(UserError) as caught:
        check_values([], space)
    assert {m.split(":")[0] for m in caught.value.messages} == {
        "train.learning_rate=-1.0",
        "train.learning_rate=-0.236",
        "optimizer=adamm",
    }
    with pytest.raises(UserError, match=r"train.learning_rate: a grid needs values"):
        _check(load_config(), {"train.learning_rate": Interval(0.1, 1, log=False, whole=False)})


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_file_varies_what_may_be_varied(name: str) -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        node = compose("config", overrides=[f"sweep={name}"], return_hydra_config=True)
    config = load_config([f"sweep={name}"])
    fixed, space = read_space(node.hydra.sweeper.params, [f"sweep={name}"])
    assert space and config.sweep.algorithm == name
    check_values(fixed, space)
    _check(config, space)
    if name == "grid":
        assert list(combinations(space))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep.early_termination=median"], "a grid runs every trial to its end"),
        (["sweep.algorithm=optuna"], "nothing is varied"),
        (["compute.devices=2"], "a trial has one device here"),
    ],
)
def test_what_a_sweep_here_cannot_do_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _check(load_config(overrides), {})


def test_a_trial_that_fails_is_killed_or_takes_too_long_does_not_end_the_sweep(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = "train.learning_rate=0.1,0.2,0.3,0.02,0.01"
    status = sweep_jobs.sweep(tmp_path, [rates, "sweep.trial_timeout=12"], job=sweep_jobs.fragile)
    assert status == 1
    table = rows_of(tmp_path)
    assert [r["status"] for r in table] == ["finished"] * 2 + ["failed"] * 3
    assert [r["train.learning_rate"] for r in table[:2]] == ["0.02", "0.01"]
    reasons = {r["train.learning_rate"]: r["reason"] for r in table[2:]}
    assert reasons == {
        "0.1": "was killed by signal 9",
        "0.2": "ended without a result",
        "0.3": "took longer than sweep.trial_timeout=12 s",
    }
    log = (tmp_path / "1" / "train.log").read_text()
    assert "a trial's own words" in log and "its worker's words" in log and "RuntimeError: broken" in log
    said = capfd.readouterr()
    assert "3 of 5 trials failed" in said.out and "trial 0: failed (was killed by signal 9)" in said.err


def alive(folder: Path) -> list[str]:
    """Return the trials whose processes have this folder's log open."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            target = (process / "fd" / "1").readlink()
        except OSError:
            continue
        if target.name == "train.log" and target.is_relative_to(folder):
            found.append(target.parent.name)
    return found


@pytest.mark.parametrize(
    "words", [["train.learning_rate=0.01,0.02,0.03,0.04,0.05,0.06"], OPTUNA], ids=["grid", "optuna"]
)
def test_a_killed_sweep_is_carried_on_and_repeats_no_finished_trial(tmp_path: Path, words: list[str]) -> None:
    words = [*words, "sweep.max_trials=6"]
    command = [sys.executable, sweep_jobs.__file__, str(tmp_path / "sweep"), *words]
    log = tmp_path / "sweep" / "ran"
    process = subprocess.Popen(
        command, env={**os.environ, "TRIAL_SECONDS": "0.4"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_text().count("ended") >= 2):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while alive(tmp_path):  # trials do not outlive their sweep
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ended = set(re.findall(r"ended (\d+)", log.read_text()))
    assert 2 <= len(ended) < 6
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    begun = re.findall(r"begun (\d+)", log.read_text())
    assert {n: begun.count(n) for n in ended} == dict.fromkeys(ended, 1)
    assert len(set(begun)) == 6
    assert [r["status"] for r in rows_of(tmp_path / "sweep")] == ["finished"] * 6
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert re.findall(r"begun (\d+)", log.read_text()) == begun  # there was nothing left to do


def test_a_larger_grid_runs_only_what_is_new_and_what_failed(tmp_path: Path) -> None:
    assert sweep_jobs.sweep(tmp_path, ["train.learning_rate=0.1,0.01"], job=sweep_jobs.fragile) == 1
    assert sweep_jobs.sweep(tmp_path, ["train.learning_rate=0.02,0.1,0.01"]) == 0
    begun = re.findall(r"begun (\d+)", (tmp_path / "ran").read_text())
    assert sorted(begun) == ["0", "1", "2"]
    assert {r["job"]: r["train.learning_rate"] for r in rows_of(tmp_path)} == {"2": "0.02", "1": "0.01", "0": "0.1"}


def test_a_study_learns_nothing_from_another_sweep(tmp_path: Path) -> None:
    assert sweep_jobs.sweep(tmp_path, [*OPTUNA, "sweep.max_trials=2"]) == 0
    with pytest.raises(UserError, match="holds a sweep with another search space"):
        sweep_jobs.sweep(tmp_path, ["sweep=optuna", "train.learning_rate=interval(0.001,0.2)"])
    with _locked(tmp_path), pytest.raises(UserError, match="another sweep is at work"), _locked(tmp_path):
        pass


def test_a_study_survives_half_a_line_and_draws_new_values(tmp_path: Path) -> None:
    config = load_config([*OPTUNA[:1], "sweep.max_trials=3", "sweep.algorithm=random"])
    _, space = read_space({}, OPTUNA)
    drawn = []
    for _ in range(2):
        plan = Sampled(tmp_path, config, fixed=[], space=space, identity="")
        trial = plan.next()
        assert trial is not None
        plan.tell(trial, TrialResult(status="finished", metrics={"val/acc": 0.5}))
        drawn.append(trial.values["train.learning_rate"])
        with (tmp_path / "study.journal").open("a") as file:
            file.write('{"op_code": 6, "wor')  # a kill in the middle of a write
    assert drawn[0] != drawn[1]
    assert Sampled(tmp_path, config, fixed=[], space=space, identity="").said.endswith(
        "2 of them ended before, 0 carried on"
    )


@pytest.mark.parametrize("rule", ["median", "bandit", "truncation"])
def test_trials_that_fall_behind_are_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep=random", f"sweep.early_termination={rule}", "sweep.delay_epochs=2", "sweep.max_trials=8"]
    config = load_config(words)
    plan = Sampled(tmp_path, config, fixed=words, space=read_space({}, OPTUNA)[1], identity="")
    epochs: dict[int, int] = {}

    def train(config: Any, *, overrides: Any, run_dir: Path) -> Any:
        good = int(run_dir.name) < 6  # the last two are hopeless
        (run_dir / "model" / "training" / "checkpoints").mkdir(parents=True)
        for epoch in range(5):
            epochs[int(run_dir.name)] = epoch
            accuracy = (0.5 + int(run_dir.name) / 100 if good else 0.1) + epoch / 100
            report_epoch(epoch, {"val/acc": accuracy, "val/loss": 1.0})
        return type("Card", (), {"metrics": {"epoch": 4.0, "val/acc": accuracy}})

    monkeypatch.setattr(job, "train", train)
    while (trial := plan.next()) is not None:
        plan.tell(trial, job.run_trial(config, trial.overrides, trial.folder))
    assert epochs == {**dict.fromkeys(range(6), 4), 6: 2, 7: 2}
    result = TrialResult.load(tmp_path / "7")
    assert result is not None and result.status == "pruned" and result.metrics["val/acc"] == pytest.approx(0.12)
    assert not (tmp_path / "7" / "model" / "training" / "checkpoints").exists()
    assert board.finish(tmp_path, config, ["train.learning_rate"], words, "") == 0  # stopped is not failed
    assert [r["status"] for r in rows_of(tmp_path)] == ["finished"] * 6 + ["pruned"] * 2
    assert "stopped after epoch 3: other trials were better by then" in capsys.readouterr().out


class Launcher:
    """One of Hydra's, whose workers are killed: trial 1 always, trial 2 once."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def launch(self, batch: list[list[str]], initial_job_idx: int) -> None:
        folders = [Path(job[-2].split("=")[1].strip("'")) / job[-1].split("=")[1] for job in batch]
        self.batches.append([f.name for f in folders])
        for folder in folders:
            (folder / ".hydra").mkdir(exist_ok=True)
            if folder.name == "1" or (folder.name == "2" and len(self.batches) == 1):
                raise RuntimeError("a worker was killed")
            TrialResult(status="finished", metrics={"epoch": 0.0, "val/acc": 0.5}).save(folder)


def test_a_launcher_that_breaks_down_is_started_again_for_the_rest(tmp_path: Path) -> None:
    config = load_config()
    _, space = read_space({}, ["train.learning_rate=0.1,0.2,0.3,0.4"])
    launcher = Launcher()
    run_there(Grid(tmp_path, config, fixed=[], space=space, identity=""), launcher, config)
    assert launcher.batches == [["0", "1", "2", "3"], ["1", "2", "3"], ["2", "3"]]
    rows = {r["job"]: (r["status"], r["reason"]) for r in board.leaderboard(tmp_path, "val/acc", "")}
    done = ("finished", "")
    assert rows == {0: done, 1: ("failed", "its process was killed"), 2: done, 3: done}


def test_what_the_user_did_wrong_in_a_trial_is_its_reason(tmp_path: Path) -> None:
    assert job.run_trial(UserError("a: wrong"), [], tmp_path).reason == "a: wrong"
    loaded = TrialResult.load(tmp_path)
    assert loaded is not None and loaded.status == "failed"


def test_the_best_trials_line_gives_its_settings(tmp_path: Path) -> None:
    fixed = ["optimizer=sgd", "sweep.max_trials=9", "classes.names=[cat,dog]"]
    assert sweep_jobs.sweep(tmp_path, [*fixed, RATES, "train.momentum=0.8,0.9"]) == 0
    line = shlex.split((tmp_path / "best.txt").read_text())
    assert line[:3] == ["python", "-m", "objrec.train"] and not any("sweep" in word for word in line)
    expected = load_config([*fixed, "train.learning_rate=0.02", "train.momentum=0.8"])
    assert dump(load_config(line[3:]), keyed_only=True) == dump(expected, keyed_only=True)
    assert [r["train.learning_rate"] for r in rows_of(tmp_path)[:2]] == ["0.02", "0.02"]


def test_losses_are_better_when_they_are_low(tmp_path: Path) -> None:
    sweep_jobs.sweep(tmp_path, [RATES])
    for number, loss in enumerate((0.3, 0.1, 0.2)):
        TrialResult(status="finished", metrics={"epoch": 0.0, "val/loss": loss}).save(tmp_path / str(number))
    assert [r["job"] for r in board.leaderboard(tmp_path, "val/loss", sweep_jobs.IDENTITY)] == [1, 2, 0]
    assert board.leaderboard(tmp_path, "val/loss", "of other settings") == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_an_image_for_any_number_of_keys(tmp_path: Path, count: int) -> None:
    columns = [["0.001", "0.01", "0.1"], ["sgd", "adamw", "sgd"], ["16", "32", "64"], ["a", "a", "b"], ["1", "2", "3"]]
    keys = [f"key{i}" for i in range(count)]
    rows: list[dict[str, Any]] = [
        {"val/acc": acc, "status": status, **{k: columns[i][n] for i, k in enumerate(keys)}}
        for n, (acc, status) in enumerate([(0.9, "finished"), (0.7, "finished"), (0.2, "pruned")])
    ]
    assert draw(rows, "val/acc", keys, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.width > 400
    assert not draw([], "val/acc", keys, tmp_path / "none.png")


def test_what_shapes_the_trials_tells_two_sweeps_apart(tmp_path: Path) -> None:
    data = {"train_dir": tmp_path / "a", "valid_dir": tmp_path / "b"}
    same = _identity(load_config(), data)
    for words in (["serve.port=8000"], ["sweep.max_trials=7"], ["runs_dir=elsewhere"], ["optimizer.lr=0.003"]):
        assert _identity(load_config(words), data) == same
    assert _identity(load_config(["train.max_epochs=3"]), data) != same
    assert _identity(load_config(), {**data, "train_dir": tmp_path / "c"}) != same
    images = tmp_path / "x"
    (images / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "cat" / "old.png")
    given = load_config([f"train_dir={images}", f"valid_dir={images}"])
    before = _identity(given, {"train_dir": images, "valid_dir": images})
    Image.new("RGB", (4, 4)).save(images / "cat" / "new.png")
    assert _identity(given, {"train_dir": images, "valid_dir": images}) != before


def test_the_data_set_is_built_once_unless_the_trials_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objrec.sweeps import sweeper

    monkeypatch.setattr(sweeper, "data_dirs", lambda *_: {"train_dir": tmp_path})
    config = load_config()
    assert _build_data(config, [], ["train.learning_rate", "optimizer", "backbone.name"], tmp_path) is not None
    for key in ("preprocess.image_size", "classes", "seed", "source.path", "experiment"):
        assert _build_data(config, [], [key], tmp_path) is None
