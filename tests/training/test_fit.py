"""Training, in this process: every option runs, a resumed run equals an undisturbed one, the folder stands alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training import QUIET, make_data, train
from PIL import Image

from objrec.config.errors import UserError
from objrec.config.load import config_dir, load_config
from objrec.images.image_folder import fingerprint
from objrec.images.raw import read_hashes
from objrec.inference.predictor import Predictor
from objrec.models.card import TRAINED_ON, ModelCard, file_sha256
from objrec.steps.base import restrict
from objrec.steps.train import STEP

CONFIGS = Path(config_dir())
pytestmark = QUIET


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model_dir(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    train(data, folder, "train.max_epochs=6", "train.learning_rate=0.05")
    return folder


def test_it_learns_and_the_folder_says_how(model_dir: Path, data: Path) -> None:
    card = ModelCard.load(model_dir)
    assert card.metrics["val/acc"] >= 0.9
    assert card.class_names == ["blue", "red"] and card.input_size == 32
    assert card.training_data_fingerprint == fingerprint(data / "train")
    assert card.files == {n: file_sha256(model_dir / n) for n in ("model.safetensors", "model.onnx", TRAINED_ON)}
    assert card.temperature > 0 and card.unknown is not None
    assert sorted(p.name for p in model_dir.iterdir()) == [
        "config.yaml",
        "model.json",
        "model.onnx",
        "model.safetensors",
        "trained_on.txt.gz",
        "training",
    ]
    trained_on = {file_sha256(path)[:16] for path in (data / "train").rglob("*.png")}
    assert read_hashes(model_dir / TRAINED_ON) == trained_on and card.crops_fingerprint == fingerprint(data / "train")
    assert not list(model_dir.rglob("*.ckpt")) and not list(model_dir.rglob("*.pt*"))


def test_the_best_epoch_is_exported_and_its_metrics_reported(model_dir: Path, data: Path) -> None:
    card = ModelCard.load(model_dir)
    rows = list(csv.DictReader((model_dir / "training" / "metrics.csv").read_text().splitlines()))
    logged = {"train/loss", "train/acc", "val/loss", "val/acc", "val/f1", "val/ece"}
    assert len(rows) == 6 and {"epoch", "lr", *logged} == set(rows[0])
    best = max(float(r["val/acc"]) for r in rows)
    assert card.metrics["val/acc"] == best
    predictor = Predictor.load(model_dir)
    right = [
        predictor.predict([path])[0][0][0] == path.parent.name for path in sorted((data / "valid").glob("*/*.png"))
    ]
    assert sum(right) / len(right) == pytest.approx(best, abs=1e-6)


def test_torch_and_onnx_answer_the_same(model_dir: Path, data: Path) -> None:
    import torch

    from objrec.models.folder import load_model

    model, card = load_model(model_dir)
    predictor = Predictor.load(model_dir)
    files = sorted((data / "valid").glob("*/*.png"))
    pixels = np.stack([card.preprocessing.pixels(p, max_pixels=10**6) for p in files])
    with torch.inference_mode():
        expected = model(torch.from_numpy(card.preprocessing.normalize(pixels))).numpy()
    np.testing.assert_allclose(predictor.logits(pixels), expected, atol=1e-4)


def test_training_and_prediction_see_the_same_numbers(data: Path) -> None:
    """The datamodule's normalised images equal those of Preprocessing: one definition."""
    from objrec.datamodules.image_folder import ImageFolderDataModule
    from objrec.images.preprocessing import Preprocessing

    config = load_config(["augmentation=none"])
    preprocessing = Preprocessing(size=32, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    module = ImageFolderDataModule(
        train_dir=data / "train",
        valid_dir=data / "valid",
        preprocessing=preprocessing,
        batch_size=16,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=0,
        max_pixels=10**6,
    )
    module.setup()
    images, targets = module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)
    files = sorted((data / "valid").glob("*/*.png"))
    pixels = np.stack([preprocessing.pixels(p, max_pixels=10**6) for p in files])
    np.testing.assert_allclose(images.numpy(), preprocessing.normalize(pixels), atol=1e-5)
    assert targets.tolist() == [0] * 8 + [1] * 8


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    overrides = ["train.max_epochs=3", "augmentation=flip_crop", "scheduler=cosine", "compute.precision=32"]
    whole = train(data, tmp_path / "whole", *overrides)
    from objrec.training.callbacks.history import History

    original = History.on_train_epoch_end

    def killed(self: Any, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        if trainer.current_epoch == epoch:
            raise Killed

    monkeypatch.setattr(History, "on_train_epoch_end", killed)
    with pytest.raises(Killed):
        train(data, tmp_path / "cut", *overrides)
    monkeypatch.undo()
    assert (tmp_path / "cut" / "training" / "checkpoints" / "last.ckpt").is_file()
    resumed = train(data, tmp_path / "cut", *overrides)
    assert resumed.sha256 == whole.sha256
    metrics = [(tmp_path / n / "training" / "metrics.csv").read_text() for n in ("cut", "whole")]
    assert metrics[0] == metrics[1]


def test_checkpoints_of_other_settings_are_refused_with_a_choice(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "training" / "checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "settings.json").write_text('{"train": {"learning_rate": 1}}')
    (folder / "last.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"other settings \(.*train\.resume=never"):
        train(data, tmp_path / "model", "debug=fast_dev_run")
    assert (folder / "last.ckpt").read_bytes() == b"not a checkpoint"
    assert train(data, tmp_path / "model", "debug=fast_dev_run", "train.resume=never").metrics["epoch"] == 0


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data: Path, tmp_path: Path) -> None:
    runs = [train(data, tmp_path / str(i), "debug=fast_dev_run", f"seed={seed}") for i, seed in enumerate((0, 0, 1))]
    assert runs[0].sha256 == runs[1].sha256 != runs[2].sha256


GROUPS = ("backbone", "optimizer", "scheduler", "augmentation", "callbacks", "experiment", "logger")
OPTIONS = sorted(f"{f.parent.name}={f.stem}" for g in GROUPS for f in (CONFIGS / g).glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains(option: str, data: Path, tmp_path: Path) -> None:
    if option == "logger=mlflow":
        pytest.importorskip("mlflow")
    if option == "logger=tensorboard":
        pytest.importorskip("tensorboard")
    own = [
        "debug=fast_dev_run",
        "source=sample",
        "preprocess.image_size=32",
        "compute=cpu",
        "backbone.pretrained=false",
    ]
    if not option.startswith("backbone="):
        own += ["backbone.name=test_resnet", "backbone.weights=null"]
    config = restrict(load_config([option, *own]), STEP)
    inputs = {"train_dir": data / "train", "valid_dir": data / "valid"}
    STEP.run(config, inputs, {"model_dir": tmp_path})
    assert ModelCard.load(tmp_path).class_names == ["blue", "red"]


def test_weights_of_the_same_architecture_are_taken_and_reported(
    model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path, "debug=fast_dev_run", f"backbone.weights={model_dir / 'model.safetensors'}")
    said = capsys.readouterr().out
    assert "tensors taken" in said and "missing" not in said


def test_weights_that_do_not_fit_are_refused_with_the_names(model_dir: Path, data: Path, tmp_path: Path) -> None:
    weights = model_dir / "model.safetensors"
    with pytest.raises(UserError, match="another architecture"):
        train(data, tmp_path, f"backbone.weights={weights}", "backbone.name=resnet18")


def test_a_pickle_is_not_opened(data: Path, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(UserError, match="weights-only"):
        train(data, tmp_path / "m", f"backbone.weights={tmp_path / 'evil.pt'}")


def test_pretrained_weights_that_cannot_be_had_are_refused_with_the_cure(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"backbone.pretrained=false.*backbone.weights=PATH"):
        train(data, tmp_path, "backbone.name=resnet18", "backbone.pretrained=true")


def test_an_unknown_backbone_is_refused_with_the_nearest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'resnet18'\?"):
        train(data, tmp_path, "backbone.name=resnet81")


def test_an_option_of_another_optimizer_is_refused_with_the_cure(data: Path, tmp_path: Path) -> None:
    options = ["experiment=cifar10_cpu", "source.path=x", "optimizer=sgd"]  # whose rates of Muon's groups stay
    with pytest.raises(UserError, match=r"SGD cannot be created: .*'head_lr'.*'~optimizer.head_lr'"):
        train(data, tmp_path, *options)


def test_a_loss_that_is_not_finite_stops_with_the_cure(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is not finite at step \d+.*train.learning_rate"):
        train(data, tmp_path, "train.learning_rate=1e18", "optimizer.weight_decay=0.1", "train.max_epochs=3")


def test_a_class_that_only_validation_has_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "valid" / "rad").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "valid" / "rad" / "a.png")
    (tmp_path / "train").symlink_to(data / "train")
    with pytest.raises(UserError, match=r"class 'rad'.*Did you mean 'red'"):
        train(tmp_path, tmp_path / "model")


def test_the_saved_config_has_no_secret_and_no_path(model_dir: Path) -> None:
    text = (model_dir / "config.yaml").read_text()
    assert "train:" in text and "learning_rate: 0.05" in text and str(model_dir) not in text
    assert json.loads((model_dir / "model.json").read_text())["versions"]["torch"]
