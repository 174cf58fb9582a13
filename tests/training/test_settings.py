"""Every number of the training configuration has an effect, or is refused; each has one owner."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from helpers.training import QUIET, TINY, make_data, run_train_step
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from objrec.config.errors import UserError
from objrec.config.load import config_dir, load_config, register_resolvers
from objrec.config.schema import Config
from objrec.runner.runner import check_run
from objrec.steps import load_steps
from objrec.steps.train import STEP

pytestmark = QUIET
BASE = ["train.max_epochs=2", "train.batch_size=4", "train.learning_rate=0.01"]
SEVERAL_PROCESSES = {"compute.devices", "compute.num_nodes"}  # see test_distributed.py
# what neither half of a number nor one more would show in two epochs
VALUES: dict[str, Any] = {
    "train.gradient_clip": 0.01,
    "train.ema": 0.5,
    "train.layer_decay": 0.5,
    "train.progressive_resize": 0.5,
    "train.limit_batches": 1,
    "train.fraction": 0.5,
    "train.memory_limit": 10**9,
    "images.max_pixels": 64,
    "augmentation.scale": "[0.1,0.2]",
    "augmentation.ratio": "[0.5,0.6]",
    "augmentation.erase_area": "[0.1,0.2]",
    "augmentation.flip": 1.0,
    "augmentation.pad": 9,
    "augmentation.num_ops": 5,
    "augmentation.magnitude": 20,
    "datamodule.store_size": 40,
    "preprocess.image_size": 40,
    "optimizer.betas": "[0.5,0.9]",
    "scheduler.step_size": 1,
    "scheduler.patience": 0,
    "scheduler.pct_start": 0.6,
    "scheduler.momentum_swing": 0.0,
    "scheduler.warmup": 0.5,
    "callbacks.early_stopping.patience": 1,
}
FLAT = ["train.learning_rate=1e-12", "train.max_epochs=3"]  # nothing ever improves
# val/acc would have to rise by more than it can: the rate falls, and the weights show it
PLATEAU = ["scheduler.threshold=2", "scheduler.threshold_mode=abs", "train.max_epochs=3"]
# what else is needed to see it
WITH: dict[str, list[str]] = {
    "scheduler=plateau scheduler.factor": [*PLATEAU, "scheduler.patience=0"],
    "scheduler=plateau scheduler.patience": PLATEAU,
    "scheduler=step scheduler.gamma": ["scheduler.step_size=1"],
    "callbacks=early_stopping callbacks.early_stopping.patience": FLAT,
}
# refused alone, with an effect together
TOGETHER = {
    "train.focal_gamma": ["train.loss=focal"],
    "train.progressive_resize": ["preprocess.image_size=48"],
    "augmentation.scale": ["augmentation=flip_crop"],
    "augmentation.ratio": ["augmentation=flip_crop"],
    "augmentation.erase_area": ["augmentation.erase=1.0"],
    "augmentation.num_ops": ["augmentation=rand"],
    "augmentation.magnitude": ["augmentation=rand"],
    "datamodule.store_size": ["augmentation=flip_crop"],
    "train.momentum": ["optimizer=sgd"],
}


def numeric_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield keys of numbers, lists of numbers among them, that are no presentation."""
    for name, field in model.model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numeric_keys(field.annotation, f"{prefix}{name}.")
        elif marks.get("keyed") is not False and numeric(field.annotation):
            yield f"{prefix}{name}"


def numeric(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType, list) or hasattr(annotation, "__metadata__"):
        return any(numeric(part) for part in get_args(annotation)[: 1 if hasattr(annotation, "__metadata__") else None])
    return annotation in (int, float)


def node_keys() -> Iterator[tuple[str, str]]:
    for group in ("optimizer", "scheduler", "callbacks"):
        for file in sorted((Path(config_dir()) / group).glob("*.yaml")):
            for key, value in leaves(yaml.safe_load(file.read_text()) or {}, group):
                if isinstance(value, (int, float, list)) and not isinstance(value, bool) and "defaults" not in key:
                    yield f"{group}={file.stem}", key


def leaves(data: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, dict):
        yield prefix, data
        return
    for name, value in data.items():
        yield from leaves(value, f"{prefix}.{name}")


def is_read(key: str) -> bool:
    return any(key == r or key.startswith(f"{r}.") for r in STEP.reads)


CASES = [("", key) for key in numeric_keys(Config) if is_read(key) and key not in SEVERAL_PROCESSES]
CASES += list(node_keys())


def is_group(override: str) -> bool:
    return (Path(config_dir()) / override.partition("=")[0]).is_dir()


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    register_resolvers()
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def compose_data(overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra makes of overrides, with what all cases share composed once."""
    groups = [o for o in overrides if is_group(o)]
    config = deepcopy(composed(tuple(groups)))
    OmegaConf.set_struct(config, False)  # torch's classes take options that no file names
    values = OmegaConf.from_dotlist([o for o in overrides if o not in groups])
    data = OmegaConf.to_container(OmegaConf.merge(config, values), resolve=True)
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A training without its export and its images: a hash of its weights and metrics."""
    from objrec.config import load
    from objrec.training import fit as training
    from objrec.training.callbacks import history
    from objrec.training.display import batch_preview

    data = make_data(tmp_path_factory.mktemp("data"), train=6, valid=3)
    found: dict[tuple[str, ...], str] = {}

    def run(*overrides: str) -> str:
        if overrides not in found:
            folder = tmp_path_factory.mktemp("model")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(load, "compose_data", compose_data)
                config = load_config([*TINY, *BASE, *overrides])
            run_train_step(config, data, folder)
            digest = hashlib.sha256((folder / "training" / "metrics.csv").read_bytes())
            digest.update((folder / "weights").read_bytes())
            found[overrides] = digest.hexdigest()
        return found[overrides]

    def write(config: Any, steps: Any, module: Any, data: Any, calibrate: Any, model_dir: Path, metrics: Any) -> None:
        weights = b"".join(t.numpy().tobytes() for t in module.model.state_dict().values())
        (model_dir / "weights").write_bytes(weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_model_folder", write)
        patch.setattr(training.ModelCard, "load", lambda folder: None)
        patch.setattr(history, "draw_curves", lambda *args: None)
        patch.setattr(batch_preview, "draw_batch", lambda *args: None)
        patch.setattr(os, "fsync", lambda file: None)
        yield run


def changed(group: str, key: str) -> str:
    if key in VALUES:
        return f"{key}={VALUES[key]}"
    value: Any = OmegaConf.select(composed((group,) if group else ()), key)
    if isinstance(value, int):
        return f"{key}={value + 1}"
    return f"{key}={0.3 if not value else value / 2}"


@pytest.mark.parametrize(("group", "key"), CASES)
def test_every_number_has_an_effect_or_is_refused(group: str, key: str, result: Callable[..., str]) -> None:
    own = [*([group] if group else []), *WITH.get(f"{group} {key}", [])]
    try:
        after = result(*own, changed(group, key))
    except UserError as error:
        assert key in str(error) or "pixels" in str(error)
        return
    assert after != result(*own)


@pytest.mark.parametrize("key", TOGETHER)
def test_what_is_refused_alone_has_an_effect_together(key: str, result: Callable[..., str]) -> None:
    if key != "train.momentum":
        with pytest.raises(UserError, match=f"{key}=.* has no effect: "):
            load_config([*TINY, changed("", key)])
    assert result(*TOGETHER[key]) != result(*TOGETHER[key], changed("", key))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.1"], r"optimizer\.lr=0\.1: the learning rate is train\.learning_rate"),
        (["scheduler.max_lr=0.1"], r"scheduler\.max_lr=0\.1: the learning rate is train\.learning_rate"),
        (["train.find_lr=true", "train.learning_rate=0.1"], "train.find_lr=true finds the learning rate"),
        (["train.momentum=0.5", "optimizer=muon"], r"train\.momentum=0\.5 has no effect"),
        (["callbacks.checkpoint.mode=min"], "for val/acc it is max"),
        (["callbacks.checkpoint.save_top_k=0"], "0 keeps no epoch"),
        (["callbacks.checkpoint.monitor=mine/x"], "'mine/x' is not logged"),
        (["compute.devices=0"], "at least 1"),
        (["compute=cpu", "compute.devices=-1"], "number of processes"),
        (["train.learning_rate=inf"], "finite"),
        (["optimizer.weight_decay=-1"], "at least 0"),
        (["optimizer.betas=[0.9,1]"], "below 1"),
        (["scheduler=cosine", "scheduler.warmup=nan"], "finite"),
        (["backbone.name=test_vit", "backbone.small_input=true"], "cuts images into patches"),
        (["backbone.name=resnet_34"], r"Did you mean 'resnet34'\?"),
        (["backbone.name=resnet18.a1in1k"], r"Did you mean 'resnet18.a1_in1k'\?"),
    ],
)
def test_what_is_refused_before_any_work(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(overrides)


def test_weights_that_are_not_there_are_named_before_ingest(tmp_path: Path) -> None:
    missing = f"backbone.weights={tmp_path / 'no.safetensors'}"
    with pytest.raises(UserError, match=f"{missing}: there is no such file"):
        check_run(load_steps(), load_config([missing, f"cache_dir={tmp_path / 'cache'}"]))
    assert not (tmp_path / "cache").exists()


def test_the_direction_follows_from_the_metric() -> None:
    from objrec.config.metrics import with_mode

    for metric, mode in (("val/loss", "min"), ("val/acc", "max"), ("val/ece", "min"), ("train/acc", "max")):
        load_config([f"callbacks.checkpoint.monitor={metric}", "scheduler=plateau", f"scheduler.monitor={metric}"])
        for target in ("x.ModelCheckpoint", "x.EarlyStopping", "x.ReduceLROnPlateau"):
            assert with_mode({"_target_": target, "monitor": metric})["mode"] == mode
    assert "mode" not in with_mode({"_target_": "x.ModelCheckpoint", "monitor": None, "mode": "auto"})
    assert with_mode({"_target_": "x.EarlyStopping", "monitor": "mine", "mode": "min"})["mode"] == "min"


def test_the_names_of_timm_are_those_in_its_source() -> None:
    import timm

    import objrec.models.cifar_net  # noqa: F401
    from objrec.config.backbone_names import model_names, name_problem

    assert set(timm.list_models()) <= model_names()
    assert not [name for name in timm.list_pretrained() if name_problem(name)]
