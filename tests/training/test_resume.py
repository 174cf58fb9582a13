"""A training that is killed or terminated anywhere ends, started again, with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.training import QUIET, TINY, make_data, run_train_step, train
from safetensors.torch import save_file

from objrec.config.load import load_config
from objrec.models.card import ModelCard
from objrec.training.callbacks.checkpoint import MidEpochCheckpoint
from objrec.training.resume import open_checkpoints

pytestmark = QUIET
# everything that has a state or draws at random
RECIPE = ["train.max_epochs=3", "augmentation=flip_crop", "scheduler=cosine", "compute.precision=32"]
RECIPE += ["backbone.drop_rate=0.2", "train.ema=0.9", "train.freeze_epochs=1", "train.accumulate=2"]
STEPS = 15  # batches: 40 images, 8 in each, 3 epochs


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(data, folder, *RECIPE)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("tiny"), train=8, valid=3)


def stop_at(step: int, stop: Any, patch: pytest.MonkeyPatch) -> None:
    """Have ``stop()`` called when ``step`` batches are done."""
    original = MidEpochCheckpoint.on_train_batch_end
    done = 0

    def counted(self: Any, trainer: Any, *args: Any) -> None:
        nonlocal done
        original(self, trainer, *args)
        done += 1
        if done == step:
            stop()

    patch.setattr(MidEpochCheckpoint, "on_train_batch_end", counted)


def assert_same(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "training/metrics.csv", "training/per_class.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("step", "minutes"),
    [
        *((step, "1e-9") for step in random.Random(0).sample(range(1, STEPS + 1), 5)),
        *((step, "null") for step in (3, 12)),
    ],
)
def test_killed_at_a_random_step(
    step: int, minutes: str, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoints at the ends of epochs only, and with one after every step."""

    def kill() -> None:
        raise Killed

    options = [*RECIPE, f"train.checkpoint_minutes={minutes}"]
    with monkeypatch.context() as patch:
        stop_at(step, kill, patch)
        with pytest.raises(Killed):
            train(data, tmp_path, *options)
    assert (tmp_path / "training/checkpoints/last.ckpt").is_file() == (step > 5 or (minutes != "null" and step > 2))
    train(data, tmp_path, *options)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("step", [9, 10])
def test_sigterm_saves_and_exits_with_143(
    step: int,
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        stop_at(step, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(SystemExit) as caught:
            train(data, tmp_path, *RECIPE)
    assert caught.value.code == 143 and "Run the same command again to resume" in capsys.readouterr().out
    assert (tmp_path / "training/checkpoints/last.ckpt").is_file()
    train(data, tmp_path, *RECIPE)
    assert "Resuming from" in capsys.readouterr().out
    assert_same(tmp_path, whole)


SCHEDULERS = {
    "constant": [],
    "cosine": ["scheduler.warmup=0.3"],
    "linear": ["scheduler.warmup=0.3"],
    "one_cycle": [],
    "plateau": ["scheduler.patience=0", "scheduler.monitor=val/loss"],
    "step": ["scheduler.step_size=1"],
}
CALLBACKS = {
    "default": ["train.learning_rate=0.01"],
    "early_stopping": ["callbacks.early_stopping.patience=1", "train.learning_rate=1e-12"],  # ends it after two epochs
}
MOMENTS = ("epoch", "step", "end", "export")  # in turn, of one training


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trainings that draw nothing and write their weights alone."""
    from objrec.training import fit as training
    from objrec.training.callbacks import history
    from objrec.training.display import batch_preview

    def write(config: Any, steps: Any, module: Any, data: Any, calibrate: Any, model_dir: Path, metrics: Any) -> None:
        save_file({k: v.contiguous() for k, v in module.model.state_dict().items()}, model_dir / "model.safetensors")

    monkeypatch.setattr(training, "write_model_folder", write)
    monkeypatch.setattr(ModelCard, "load", lambda folder: None)
    monkeypatch.setattr(history, "draw_curves", lambda *args: None)
    monkeypatch.setattr(batch_preview, "draw_batch", lambda *args: None)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return training


def kill_at(moment: str, training: Any, patch: pytest.MonkeyPatch) -> None:
    """Kill a training before its second epoch, within that, when all epochs are done, or during the export."""

    def kill(*args: Any) -> None:
        raise Killed

    def second_epoch(self: Any, trainer: Any, *args: Any) -> None:
        if trainer.current_epoch == 1:
            raise Killed

    if moment == "step":
        stop_at(2, kill, patch)
    elif moment == "epoch":
        patch.setattr(MidEpochCheckpoint, "on_train_epoch_start", second_epoch)
    else:
        patch.setattr(training, {"end": "best_checkpoint", "export": "write_model_folder"}[moment], kill)


@pytest.mark.parametrize("callbacks", CALLBACKS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_and_stop_is_resumed_exactly(
    scheduler: str, callbacks: str, tiny: Path, tmp_path: Path, light: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at every moment in turn, in a folder that is moved each time."""
    recipe = [f"scheduler={scheduler}", *SCHEDULERS[scheduler], f"callbacks={callbacks}", *CALLBACKS[callbacks]]
    recipe += ["train.max_epochs=3", "train.batch_size=4", "train.checkpoint_minutes=1e-9"]
    config = load_config([*TINY, *recipe])
    run_train_step(config, tiny, tmp_path / "whole")
    folder = tmp_path / "cut"
    for moment in MOMENTS:
        with monkeypatch.context() as patch:
            kill_at(moment, light, patch)
            with pytest.raises(Killed):
                run_train_step(config, tiny, folder)
        folder = folder.rename(tmp_path / moment)
    run_train_step(config, tiny, folder)
    assert_same(folder, tmp_path / "whole")


def test_ctrl_c_says_from_where_the_next_run_resumes(
    tiny: Path, tmp_path: Path, light: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config([*TINY, "train.max_epochs=3", "train.batch_size=4"])
    for step, kept in ((2, r"from the beginning: no epoch was finished"), (6, r"from \S+last\.ckpt")):
        with monkeypatch.context() as patch:
            stop_at(step, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
            with pytest.raises(KeyboardInterrupt):
                run_train_step(config, tiny, tmp_path / str(step))
        said = capsys.readouterr().out
        assert re.search(rf"Interrupted in epoch {1 + step // 5}\. The same run resumes {kept}", said), said


def test_a_longer_training_of_a_constant_rate_equals_one_of_that_length(data: Path, tmp_path: Path) -> None:
    options = ["scheduler=constant", "compute.precision=32", "train.keep_checkpoints=true"]
    train(data, tmp_path / "whole", *options, "train.max_epochs=3")
    train(data, tmp_path / "grown", *options, "train.max_epochs=1")
    train(data, tmp_path / "grown", *options, "train.max_epochs=3")
    assert_same(tmp_path / "grown", tmp_path / "whole")


@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "linear"])
def test_a_longer_training_continues_on_the_longer_schedule(
    scheduler: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import csv

    options = [f"scheduler={scheduler}", "compute.precision=32", "train.keep_checkpoints=true"]
    train(data, tmp_path / "whole", *options, "train.max_epochs=4")
    train(data, tmp_path / "grown", *options, "train.max_epochs=2")
    train(data, tmp_path / "grown", *options, "train.max_epochs=4")
    assert "for more epochs, now 4: the schedule spans all of them" in capsys.readouterr().out
    rates = [
        [row["lr"] for row in csv.DictReader((tmp_path / n / "training/metrics.csv").read_text().splitlines())]
        for n in ("whole", "grown")
    ]
    assert len(rates[1]) == 4 and rates[0][2:] == rates[1][2:] and rates[0][1] != rates[1][1]


def test_another_training_in_the_same_folder_is_refused_and_nothing_lost(data: Path, tmp_path: Path) -> None:
    from objrec.config.errors import UserError

    options = ["train.max_epochs=1", "train.keep_checkpoints=true"]
    train(data, tmp_path, *options)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.ckpt"))
    with pytest.raises(UserError, match=r"train\.learning_rate 0\.003 → 0\.01.*train\.resume=never"):
        train(data, tmp_path, *options, "train.learning_rate=0.01")
    assert before and before == sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.ckpt"))


def test_checkpoints_of_the_users_own_stay(data: Path, tmp_path: Path) -> None:
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    train(data, tmp_path / "m", "debug=fast_dev_run", f"+callbacks.mine={{_target_: {own}, dirpath: {tmp_path}/own}}")
    assert list((tmp_path / "own").glob("*.ckpt")) and not list((tmp_path / "m").rglob("*.ckpt"))


def test_a_full_disk_is_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import torch

    from objrec.config.errors import UserError

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"checkpoint cannot be written: No space left on device"):
        train(data, tmp_path, "debug=fast_dev_run")


def test_resume_never_begins_anew(data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "training" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"not a checkpoint")
    train(data, tmp_path, *RECIPE, "train.resume=never")
    assert "Resuming from" not in capsys.readouterr().out
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_killed_pipeline_resumes_its_training(workdir: Path) -> None:
    import subprocess
    import sys
    import time

    command = [sys.executable, "-m", "objrec.pipeline", "classes.names=[apple,pear]", "ingest.num_images=40"]
    command += ["preprocess.exact_split=true", "preprocess.image_size=32", "backbone.name=test_resnet"]
    command += ["train.max_epochs=40", "train.checkpoint_minutes=0.001", "deploy.start=false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not list(workdir.glob(".objrec/cache/train/*.partial/model_dir*/training/checkpoints/last.ckpt")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    done = subprocess.run([*command, "run_dir=again"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Resuming from" in (workdir / "again" / "train.log").read_text()


def test_a_file_put_beside_checkpoints_survives_other_settings(tmp_path: Path) -> None:
    training = tmp_path / "training"
    first = open_checkpoints(training, {"seed": 0}, "auto")
    first.last.write_bytes(b"weights")
    for place in (training, first.folder):
        (place / "notes.txt").write_text("mine")
    (training / "metrics.csv").write_text("ours")
    open_checkpoints(training, {"seed": 1}, "never")
    assert sorted(p.name for p in training.rglob("*")) == [
        "checkpoints",
        "found.json",
        "notes.txt",
        "notes.txt",
        "settings.json",
    ]
