"""One training, from split folders to a model folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import nn

from objrec.config.errors import UserError
from objrec.config.load import dump
from objrec.config.schema import Compute, Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.images.geometry import Preprocessing
from objrec.models.backbones import build_backbone, input_constants, load_pretrained, load_weights, read_weights
from objrec.models.callbacks import AtomicCheckpointIO, History, Reporter
from objrec.models.card import ModelCard
from objrec.models.classifier import Classifier
from objrec.models.folder import save_model_folder
from objrec.models.pictures import FirstBatch

SECTIONS = ("backbone", "augmentation", "optimizer", "scheduler", "callbacks", "compute", "train", "seed")


@dataclass(frozen=True)
class Hardware:
    """What the Trainer is told, and a line that says why."""

    accelerator: str
    precision: str
    reason: str


Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
# (validation logits (N, classes), targets (N,), the model as a function of uint8 (M, H, W, 3)) -> fields of the card
Calibrate = Callable[[Logits, npt.NDArray[np.int64], Callable[[Pixels], Logits]], dict[str, Any]]


def fit(config: Config, *, train_dir: Path, valid_dir: Path, model_dir: Path, calibrate: Calibrate) -> ModelCard:
    """Train on ``train_dir``, choose the best epoch on ``valid_dir``, write ``model_dir``.

    An interrupted training of the same settings and data that left checkpoints in ``model_dir`` is carried on.

    Raises:
        UserError: settings that cannot be met, data that cannot be used, a loss that is not finite.
    """
    _quiet()
    hardware = choose_hardware(config.compute)
    print(hardware.reason, flush=True)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = _datamodule(config, train_dir, valid_dir)
    module = _classifier(config, num_classes=len(data.class_names))
    data_fingerprint = data.fingerprint
    checkpoints = _checkpoints(model_dir / "training", config, data_fingerprint)
    trainer = make_trainer(config, hardware, model_dir / "training", checkpoints)
    last = checkpoints / "last.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:  # of several processes the first writes the folder
        metrics = _take_best(trainer, module)
        _write_folder(config, module, data, calibrate, model_dir, metrics, data_fingerprint)
        shutil.rmtree(checkpoints)  # the best weights are in the folder now; a finished training needs no other
    trainer.strategy.barrier("the model folder is written")
    if not trainer.is_global_zero:
        sys.exit(0)  # what follows a training, moving its output into place, is for one process too
    return ModelCard.load(model_dir)


def _datamodule(config: Config, train_dir: Path, valid_dir: Path) -> ImageFolderDataModule:
    mean, std = input_constants(config.backbone.name)
    return ImageFolderDataModule(
        train_dir=train_dir,
        valid_dir=valid_dir,
        preprocessing=Preprocessing(size=config.preprocess.image_size, mean=mean, std=std),
        batch_size=config.train.batch_size,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=config.seed,
        max_pixels=config.images.max_pixels,
        fraction=config.train.fraction,
        cache_dir=Path(config.cache_dir),
    )


def _classifier(config: Config, *, num_classes: int) -> Classifier:
    size = config.preprocess.image_size
    backbone = build_backbone(**backbone_options(config), num_classes=num_classes, image_size=size)
    module: Classifier = Classifier(
        model=_with_weights(backbone, config),
        num_classes=num_classes,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        label_smoothing=config.train.label_smoothing,
    ).to(memory_format=torch.channels_last)
    if config.compute.compile:
        module.model.compile()
    return module


def _write_folder(
    config: Config,
    module: Classifier,
    data: ImageFolderDataModule,
    calibrate: Calibrate,
    model_dir: Path,
    metrics: dict[str, float],
    data_fingerprint: str,
) -> None:
    model = module.model.cpu().float().eval().to(memory_format=torch.contiguous_format)
    expects = data.preprocessing
    images, logits, targets = _validation_outputs(model, data, config.train.limit_batches)
    save_model_folder(
        model_dir,
        model,
        images=images,
        config=_as_read(config),
        backbone=backbone_options(config),
        class_names=data.class_names,
        input_size=expects.size,
        mean=list(expects.mean),
        std=list(expects.std),
        interpolation=expects.interpolation,
        training_data_fingerprint=data_fingerprint,
        metrics=metrics,
        **calibrate(logits, targets, lambda pixels: _logits(model, expects.normalize(pixels))),
    )


def choose_hardware(compute: Compute) -> Hardware:
    """Resolve ``auto``: the accelerator that is there, bf16 where it is in silicon.

    Raises:
        UserError: an accelerator is asked for that this machine has not.
    """
    accelerator = compute.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "compute.accelerator=gpu: this machine has no GPU that torch can use; compute=cpu runs anywhere"
        )
    if accelerator == "gpu":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16 = accelerator == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # AVX512-BF16 or AMX
    precision = compute.precision if compute.precision != "auto" else "bf16-mixed" if bf16 else "32"
    chosen = "asked for" if compute.precision != "auto" else "the hardware has bf16" if bf16 else "no bf16 in hardware"
    threads = f", {torch.get_num_threads()} threads" if accelerator == "cpu" else ""
    reason = f"compute: {accelerator}{threads}, precision {precision} ({chosen}), channels_last"
    return Hardware(accelerator, precision, reason)


def make_trainer(config: Config, hardware: Hardware, training_dir: Path, checkpoints: Path) -> L.Trainer:
    """Build the Trainer of a run from the configuration."""
    limit = config.train.limit_batches
    on_terminal = sys.stderr.isatty()
    callbacks: list[Any] = [
        History(training_dir),
        Reporter(print_epochs=not on_terminal),
        FirstBatch(training_dir / "batch.png"),
    ]
    if on_terminal:
        callbacks.append(RichProgressBar(leave=True))
    for node in config.callbacks.values():
        if node is not None:
            options = {k: v for k, v in node.items() if k != "_target_"}
            if node["_target_"].endswith("ModelCheckpoint"):
                options["dirpath"] = checkpoints
            callbacks.append(_construct(node["_target_"], options, "callbacks"))
    if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
        callbacks.append(ModelCheckpoint(dirpath=checkpoints, monitor="val/acc", mode="max", save_last=True))
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=config.compute.devices,
        num_nodes=config.compute.num_nodes,
        precision=hardware.precision,
        max_epochs=config.train.max_epochs,
        gradient_clip_val=config.train.gradient_clip,
        limit_train_batches=limit if limit is not None else 1.0,
        limit_val_batches=limit if limit is not None else 1.0,
        log_every_n_steps=config.train.log_every_n_steps,
        num_sanity_val_steps=0,  # the first epoch comes soon enough
        callbacks=callbacks,
        logger=_loggers(config, training_dir),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,  # ours knows rank and world
        deterministic="warn" if hardware.accelerator != "cpu" else False,
    )


def backbone_options(config: Config) -> dict[str, Any]:
    """Return what ``build_backbone`` needs to build this architecture again; saved with the model."""
    section = config.backbone
    return {"name": section.name, "small_input": section.small_input, "drop_rate": section.drop_rate}


def _with_weights(model: nn.Module, config: Config) -> nn.Module:
    section = config.backbone
    if section.pretrained:
        print(load_pretrained(model, section.name), flush=True)
    elif section.weights is not None:
        path = Path(section.weights)
        print(load_weights(model, read_weights(path), origin=f"backbone.weights={path}"), flush=True)
    return model


def _checkpoints(training_dir: Path, config: Config, data_fingerprint: str) -> Path:
    """Return the checkpoint folder, emptied when what it holds is of other settings or other data."""
    folder = training_dir / "checkpoints"
    identity = {**_as_read(config), "data": data_fingerprint}
    mark = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    owner = folder / "settings.sha256"
    if folder.exists() and not (owner.is_file() and owner.read_text() == mark):
        shutil.rmtree(training_dir)
    folder.mkdir(parents=True, exist_ok=True)
    owner.write_text(mark)
    return folder


def _as_read(config: Config) -> dict[str, Any]:
    """Plain data of the sections that shape a training."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        value = getattr(config, name)
        found[name] = dump(value) if hasattr(type(value), "model_fields") else value
    found["preprocess"] = {"image_size": config.preprocess.image_size}
    return found


def _take_best(trainer: L.Trainer, module: Classifier) -> dict[str, float]:
    """Load the best checkpoint's weights into ``module``; returns its metrics and epoch."""
    keeper = trainer.checkpoint_callback
    assert isinstance(keeper, ModelCheckpoint)
    saved = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    history = next(c for c in trainer.callbacks if isinstance(c, History))
    row = next(r for r in history.rows if r["epoch"] == saved["epoch"])
    return {k: v for k, v in row.items() if k == "epoch" or k.startswith("val/")}


def _validation_outputs(
    model: nn.Module, data: ImageFolderDataModule, limit: int | None
) -> tuple[torch.Tensor, Logits, npt.NDArray[np.int64]]:
    """Return some validation pictures, normalised, and the logits and targets of all (of ``limit`` batches)."""
    some, logits, targets = None, [], []
    for batch in itertools.islice(data.val_dataloader(), limit):
        images, target = data.on_after_batch_transfer(batch, 0)
        some = images[:16].contiguous() if some is None else some
        logits.append(_logits(model, images.contiguous().numpy()))
        targets.append(target.numpy())
    assert some is not None
    return some, np.concatenate(logits), np.concatenate(targets)


def _logits(model: nn.Module, inputs: npt.NDArray[np.float32]) -> Logits:
    with torch.inference_mode():
        parts = [model(torch.from_numpy(part)).numpy() for part in np.array_split(inputs, -(-len(inputs) // 256))]
    return np.concatenate(parts)


def _loggers(config: Config, training_dir: Path) -> Any:
    loggers = []
    for name, node in config.logger.items():
        if node is not None:
            options = {k: v for k, v in node.items() if k != "_target_"}
            if "MLFlow" in node["_target_"]:
                # inside a cloud job the platform's server and run; elsewhere a database, since MLflow refuses folders
                database = f"sqlite:///{Path(config.runs_dir).resolve() / 'mlflow.db'}"
                options.setdefault("tracking_uri", os.environ.get("MLFLOW_TRACKING_URI") or database)
                options.setdefault("run_id", os.environ.get("MLFLOW_RUN_ID"))
                Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
            else:
                options.setdefault("save_dir", str(training_dir / "logs"))
            loggers.append(_construct(node["_target_"], options, f"logger.{name}"))
    return loggers or False


def _construct(target: str, options: Mapping[str, Any], what: str) -> Any:
    try:
        return get_class(target)(**options)
    except Exception as error:
        raise UserError(f"{what}: {target} cannot be created: {error}") from error


def _quiet() -> None:
    """Silence what the libraries say to developers, not to users of objrec."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are drawn from memory
    warnings.filterwarnings("ignore", message=".*number of training batches.*log_every_n_steps.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
