"""What settings of the ``train`` section do to a training."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers.training import QUIET, make_data, train

from objrec.config.errors import UserError

pytestmark = QUIET


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def weights(model_dir: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(model_dir / "model.safetensors")


def test_a_frozen_backbone_does_not_move_but_its_head_does(data: Path, tmp_path: Path) -> None:
    options = ["debug=fast_dev_run", "train.limit_batches=2"]
    train(data, tmp_path / "start", *options, "train.learning_rate=1e-30")
    train(data, tmp_path / "frozen", *options, "backbone.frozen=true", "train.learning_rate=0.1")
    start, frozen = weights(tmp_path / "start"), weights(tmp_path / "frozen")
    learn = [k for k in start if "running" not in k and "num_batches" not in k]
    moved = {k for k in learn if not start[k].allclose(frozen[k], rtol=0, atol=1e-12)}
    assert moved == {"fc.weight", "fc.bias"}
    assert frozen["bn1.running_mean"].abs().sum() == 0  # batch statistics rest too
    assert start["bn1.running_mean"].abs().sum() > 0


def test_the_backbone_thaws_after_its_epochs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objrec.training.callbacks.history import History

    seen = []
    original = History.on_train_epoch_end

    def look(self: Any, trainer: Any, module: Any) -> None:
        seen.append((module.model.bn1.weight.detach().clone(), module.model.bn1.training))
        original(self, trainer, module)

    monkeypatch.setattr(History, "on_train_epoch_end", look)
    train(data, tmp_path, "train.max_epochs=3", "train.freeze_epochs=2", "train.limit_batches=2")
    assert seen[0][0].equal(seen[1][0]) and not seen[1][0].equal(seen[2][0])
    assert [training for _, training in seen] == [False, False, True]


def test_batch_statistics_of_trained_weights_can_be_kept(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "start", "train.max_epochs=1")
    given = [f"backbone.weights={tmp_path / 'start' / 'model.safetensors'}", "train.freeze_batch_norm=true"]
    train(data, tmp_path / "kept", "train.max_epochs=1", "train.learning_rate=0.01", *given)
    start, kept = weights(tmp_path / "start"), weights(tmp_path / "kept")
    statistics = [k for k in start if "running" in k]
    assert statistics and all(start[k].equal(kept[k]) for k in statistics)
    assert not start["bn1.weight"].equal(kept["bn1.weight"])


def test_everything_together_learns(data: Path, tmp_path: Path) -> None:
    card = train(
        data,
        tmp_path,
        "train.max_epochs=6",
        "train.learning_rate=0.02",
        "train.loss=focal",
        "train.class_weights=balanced",
        "train.layer_decay=0.9",
        "train.ema=0.9",
        "train.accumulate=2",
        "train.progressive_resize=0.7",
        "preprocess.image_size=48",
        "train.gradient_clip=1.0",
        "callbacks=early_stopping",
    )
    assert card.metrics["val/acc"] >= 0.9
    assert 0 <= card.metrics["val/ece"] <= 1 and card.metrics["val/f1"] >= 0.9
    rows = list(csv.reader((tmp_path / "training" / "per_class.csv").read_text().splitlines()))
    assert rows[0] == ["class", "val/acc"] and [r[0] for r in rows[1:]] == ["blue", "red"]


def test_the_averaged_weights_are_validated_and_exported(data: Path, tmp_path: Path) -> None:
    options = ["train.max_epochs=1", "train.learning_rate=0.05", "compute.precision=32"]
    train(data, tmp_path / "last", *options)
    train(data, tmp_path / "average", *options, "train.ema=0.9999")
    last, average = weights(tmp_path / "last"), weights(tmp_path / "average")
    assert not last["fc.weight"].equal(average["fc.weight"])
    assert last["bn1.num_batches_tracked"] == average["bn1.num_batches_tracked"]


def test_accumulated_batches_step_like_one_large_batch(data: Path, tmp_path: Path) -> None:
    """With layer norm, which sees each image alone."""
    options = ["backbone.name=test_convnext", "train.max_epochs=1", "compute.precision=32", "augmentation=none"]
    options += ["optimizer=sgd"]
    train(data, tmp_path / "small", *options, "train.batch_size=10", "train.accumulate=2")
    train(data, tmp_path / "large", *options, "train.batch_size=20")
    small, large = weights(tmp_path / "small"), weights(tmp_path / "large")
    assert all(small[k].allclose(large[k], atol=1e-5) for k in large)


def test_the_learning_rate_is_found_drawn_and_used(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path, "train.find_lr=true", "debug=fast_dev_run")
    said = capsys.readouterr().out
    rate = float(said.split("train.find_lr=true: ")[1].split(",")[0])
    assert 1e-5 < rate < 10
    assert f"learning_rate: {rate}" in (tmp_path / "config.yaml").read_text()
    assert (tmp_path / "training" / "lr_finder.png").stat().st_size > 10_000


def test_the_batch_size_is_found_and_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from objrec.training import fit as training
    from objrec.training import tuner

    train(data, tmp_path / "found", "train.batch_size=auto", "debug=fast_dev_run")
    assert "train.batch_size=auto: 8\n" in capsys.readouterr().out  # of 40 images no more
    assert "batch_size: 8" in (tmp_path / "found" / "config.yaml").read_text()

    monkeypatch.setattr(tuner, "find_batch_size", lambda *a, **k: 16)
    monkeypatch.setattr(training, "load_best", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(data, tmp_path / "cut", "train.batch_size=auto", "debug=fast_dev_run")
    monkeypatch.undo()
    train(data, tmp_path / "cut", "train.batch_size=auto", "debug=fast_dev_run")
    assert "train.batch_size=auto: 16\n" in capsys.readouterr().out.rpartition("compute:")[2]


def test_what_needs_one_process_says_so(data: Path, tmp_path: Path) -> None:
    for setting in ("train.batch_size=auto", "train.find_lr=true"):
        with pytest.raises(UserError, match=r"compute\.devices=1"):
            train(data, tmp_path, setting, "compute.devices=2")


def test_progressive_resizing_needs_a_backbone_of_any_size(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes images of one size"):
        train(data, tmp_path, "train.progressive_resize=0.6", "preprocess.image_size=64", "backbone.name=test_vit")


def test_memory_that_runs_out_names_the_size_to_try(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objrec.training.classifier import Classifier

    def exhausted(self: Any, images: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1099511627776 bytes.")

    monkeypatch.setattr(Classifier, "forward", exhausted)
    with pytest.raises(UserError, match=r"try train\.batch_size=4 "):
        train(data, tmp_path)


@pytest.mark.parametrize("overrides", [["train.batch_size=8"], ["train.batch_size=2"], ["train.accumulate=3"]])
def test_remainders_train(overrides: list[str], tmp_path: Path) -> None:
    """17 images of 32 px, where batch norm sees one value an image in the last stage of test_resnet or none."""
    data = make_data(tmp_path / "data", train=9, valid=2)
    next((data / "train" / "red").glob("*.png")).unlink()
    assert train(data, tmp_path / "model", "train.max_epochs=1", *overrides).metrics["epoch"] == 0


def test_a_model_that_cannot_be_used_is_refused_first(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from objrec.training import fit as training
    from objrec.training import rehearsal

    def unsupported(*args: Any) -> None:
        raise RuntimeError("Unsupported: ONNX export of operator x\n(a graph)")

    monkeypatch.setattr(training, "tune", lambda *a: 1 / 0)  # nothing was measured, nothing trained
    monkeypatch.setattr(rehearsal, "write_onnx", unsupported)
    with pytest.raises(UserError, match=r"test_resnet cannot be exported to ONNX.*operator x"):
        train(data, tmp_path / "a", "preprocess.image_size=40")
    with pytest.raises(UserError, match="cuts images into patches"):
        train(data, tmp_path / "b", "backbone.name=test_vit", "backbone.small_input=true")


def test_weights_lost_in_the_last_step_are_one_line(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from objrec.training.classifier import Classifier

    def lose(self: Any, *args: Any, **options: Any) -> None:
        for p in self.model.parameters():
            p.data.fill_(float("nan"))

    monkeypatch.setattr(Classifier, "on_train_batch_end", lose, raising=False)
    with pytest.raises(UserError, match=r"the validation loss is not finite .*train\.learning_rate"):
        train(data, tmp_path, "debug=fast_dev_run")
