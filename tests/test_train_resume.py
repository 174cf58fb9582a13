"""A training that is killed or terminated anywhere ends, started again, with the weights of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from train_kit import QUIET, make_data, train

from objrec.models.resume import MidEpoch, open_checkpoints

pytestmark = QUIET
# everything that has a state or draws at random
RECIPE = ["train.max_epochs=3", "augmentation=flip_crop", "scheduler=cosine", "compute.precision=32"]
RECIPE += ["backbone.drop_rate=0.2", "train.ema=0.9", "train.freeze_epochs=1", "train.accumulate=2"]
STEPS = 15  # batches: 40 pictures, 8 in each, 3 epochs


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


def stop_at(step: int, stop: Any, patch: pytest.MonkeyPatch) -> None:
    """Have ``stop()`` called when ``step`` batches are done."""
    original = MidEpoch.on_train_batch_end
    done = 0

    def counted(self: Any, trainer: Any, *args: Any) -> None:
        nonlocal done
        original(self, trainer, *args)
        done += 1
        if done == step:
            stop()

    patch.setattr(MidEpoch, "on_train_batch_end", counted)


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
    assert caught.value.code == 143 and "started again, the training carries on" in capsys.readouterr().out
    assert (tmp_path / "training/checkpoints/last.ckpt").is_file()
    train(data, tmp_path, *RECIPE)
    assert "carrying on" in capsys.readouterr().out
    assert_same(tmp_path, whole)


def test_resume_never_begins_anew(data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "training" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"not a checkpoint")
    train(data, tmp_path, *RECIPE, "train.resume=never")
    assert "carrying on" not in capsys.readouterr().out
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_killed_pipeline_carries_its_training_on(workdir: Path) -> None:
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
    assert "carrying on from" in (workdir / "again" / "train.log").read_text()


def test_a_file_put_beside_checkpoints_survives_other_settings(tmp_path: Path) -> None:
    training = tmp_path / "training"
    first = open_checkpoints(training, {"seed": 0}, "auto")
    first.last.write_bytes(b"weights")
    for place in (training, first.folder):
        (place / "notes.txt").write_text("mine")
    (training / "metrics.csv").write_text("ours")
    open_checkpoints(training, {"seed": 1}, "auto")
    assert sorted(p.name for p in training.rglob("*")) == ["checkpoints", "notes.txt", "notes.txt", "settings.sha256"]
