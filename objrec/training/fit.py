"""One training, from split folders to a model folder."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch import nn

from objrec.config.errors import UserError
from objrec.config.load import dump
from objrec.config.metrics import with_mode
from objrec.config.schema import Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.images.preprocessing import Preprocessing
from objrec.models.backbones import (
    build_backbone,
    input_constants,
    load_pretrained,
    load_weights,
    read_weights,
    takes_any_size,
)
from objrec.models.card import ModelCard
from objrec.models.folder import save_model_folder
from objrec.models.im2col import use_im2col
from objrec.training.callbacks.history import AtomicCheckpointIO, History, not_logged
from objrec.training.callbacks.moving_average import MovingAverage
from objrec.training.callbacks.progressive_resize import ProgressiveResize
from objrec.training.callbacks.trial_report import TrialReport
from objrec.training.classifier import Classifier, Diverged
from objrec.training.display.batch_preview import FirstBatch
from objrec.training.display.loggers import make_loggers
from objrec.training.display.progress import TrainingProgress
from objrec.training.finetuning import Freeze
from objrec.training.hardware import Hardware, choose_hardware, memory_advice
from objrec.training.instantiate import instantiate
from objrec.training.losses import ClassificationLoss, balanced_weights
from objrec.training.rehearsal import check_backbone, rehearse
from objrec.training.resume import TERMINATED, Checkpoints, MidEpoch, open_checkpoints
from objrec.training.tuner import find_batch_size, find_learning_rate

SECTIONS = ("backbone", "augmentation", "optimizer", "scheduler", "callbacks", "compute", "datamodule", "train", "seed")
ADAPTED_TO = 2000  # training images by which a backbone may set its first layer
CALIBRATED_ON = 2000  # validation images: a temperature and a percentile need no more, and fp32 is slow

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
# (validation logits (N, classes), targets (N,), the model as a function of uint8 (M, H, W, 3)) -> fields of the card
Calibrate = Callable[[Logits, npt.NDArray[np.int64], Callable[[Pixels], Logits]], dict[str, Any]]


def fit(config: Config, *, train_dir: Path, valid_dir: Path, model_dir: Path, calibrate: Calibrate) -> ModelCard:
    """Train on ``train_dir``, choose the best epoch on ``valid_dir``, write ``model_dir``.

    A training of the same settings and data, or of fewer epochs, that left checkpoints in ``model_dir`` is resumed.
    SIGTERM writes a checkpoint and exits with status 143.

    Raises:
        UserError: settings that cannot be met, data that cannot be used, a loss that is not finite, too little memory.
    """
    _quiet()
    layers = check_backbone(backbone_options(config), config.preprocess.image_size)
    hardware = choose_hardware(config.compute, layers)
    print(hardware.reason, flush=True)
    data = _datamodule(config, train_dir, valid_dir)
    identity = {**_as_read(config, keyed_only=True), "data": data.fingerprint}
    training_dir = model_dir / "training"
    checkpoints = open_checkpoints(training_dir, identity, config.train.resume)
    if checkpoints.finished:
        print(f"{model_dir} holds this training, finished. To train it anew: train.resume=never", flush=True)
        if not config.train.keep_checkpoints:
            checkpoints.remove()
        return ModelCard.load(model_dir)
    if not checkpoints.last.is_file():
        rehearse(backbone_options(config), config.preprocess.image_size, single=_single(config))
    settled = _settle(config, hardware, data, checkpoints)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = _classifier(config, data, settled)
    if config.backbone.weights is None and callable(adapt_to := getattr(module.model, "adapt_to", None)):
        adapt_to(torch.cat([images for images, _ in data.some("train", ADAPTED_TO)]))
    trainer = make_trainer(config, hardware, training_dir, checkpoints)
    if "best" not in checkpoints.found:  # else only the export was interrupted
        _train(trainer, module, data, checkpoints, settled)
    if trainer.is_global_zero:  # of several processes the first writes the folder
        data.trainer = None  # from here on it gives all validation images, not one process's share
        metrics = _take_best(checkpoints, module)
        _write_folder(config, settled, module, data, calibrate, model_dir, metrics)
        if not config.train.keep_checkpoints:
            checkpoints.remove()  # the best weights are in the folder now
    trainer.strategy.barrier("the model folder is written")
    if not trainer.is_global_zero:
        sys.exit(0)  # what follows a training, moving its output into place, is for one process too
    return ModelCard.load(model_dir)


def _train(
    trainer: L.Trainer, module: Classifier, data: ImageFolderDataModule, checkpoints: Checkpoints, settled: Settled
) -> None:
    """Train, from the last checkpoint on if there is one, and remember which epoch was best."""
    last = checkpoints.last if checkpoints.last.is_file() else None
    if last is not None:
        longer = (
            f" for more epochs, now {trainer.max_epochs}: the schedule spans all of them" if checkpoints.longer else ""
        )
        print(f"Resuming from {last}{longer}", flush=True)
    try:
        with memory_advice(settled.batch_size):
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except SIGTERMException:
        print(f"Stopped at step {trainer.global_step}. Run the same command again to resume.", flush=True)
        sys.exit(TERMINATED)
    except Diverged:
        if trainer.is_global_zero and not checkpoints.longer:
            checkpoints.remove()  # nobody wants to resume that
        raise
    except (MisconfigurationException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(_unmonitored(trainer, error)) from error
    if trainer.interrupted:
        kept = f"from {checkpoints.last}" if checkpoints.last.is_file() else "from the beginning: no epoch was finished"
        print(f"Interrupted in epoch {trainer.current_epoch + 1}. The same run resumes {kept}", flush=True)
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        checkpoints.remember({**checkpoints.found, "best": _best(trainer)})


def _single(config: Config) -> bool:
    """Whether batch norms meet batches of one image."""
    return config.train.batch_size == 1 and not config.train.freeze_batch_norm and not config.backbone.frozen


def _unmonitored(trainer: L.Trainer, error: Exception) -> str:
    """Say in our words that a callback monitors what was not logged; Lightning's words for anything else."""
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in trainer.callback_metrics:
            return not_logged("callbacks", monitor, trainer.callback_metrics)
    return str(error).strip().split("\n")[0]


@dataclass(frozen=True)
class Settled:
    """What the configuration leaves to be measured, or its own values."""

    batch_size: int
    learning_rate: float

    def nodes(self, config: Config) -> dict[str, dict[str, Any]]:
        """Return the optimizer and the scheduler with the settled rate."""
        ratio = self.learning_rate / config.train.learning_rate
        return {
            name: {k: v * ratio if k in ("lr", "max_lr") else v for k, v in getattr(config, name).items()}
            for name in ("optimizer", "scheduler")
        }


def _settle(config: Config, hardware: Hardware, data: ImageFolderDataModule, checkpoints: Checkpoints) -> Settled:
    """Measure the batch size, which ``data`` is told, and the learning rate where asked to.

    A resumed training keeps what it had.

    Raises:
        UserError: several processes would each find something else.
    """
    found = checkpoints.found
    if config.train.batch_size == "auto":
        _alone("train.batch_size=auto", config)
        if "batch_size" not in found:
            size = find_batch_size(
                lambda: _classifier(config, data, Settled(1, config.train.learning_rate)),
                hardware,
                image_size=config.preprocess.image_size,
                images=len(data.train_targets),
                memory=config.train.memory_limit,
            )
            checkpoints.remember(found := {**found, "batch_size": size})
        print(f"train.batch_size=auto: {found['batch_size']}", flush=True)
    settled = Settled(int(found.get("batch_size", config.train.batch_size)), config.train.learning_rate)
    data.batch_size = settled.batch_size
    if config.train.find_lr:
        _alone("train.find_lr=true", config)
        if "learning_rate" not in found:
            L.seed_everything(config.seed, workers=True, verbose=False)
            image = checkpoints.folder.parent / "lr_finder.png"
            rate = find_learning_rate(_classifier(config, data, settled), data, hardware, image)
            checkpoints.remember(found := {**found, "learning_rate": rate})
        settled = replace(settled, learning_rate=found["learning_rate"])
        print(f"train.find_lr=true: {settled.learning_rate:g}, see training/lr_finder.png", flush=True)
    return settled


def _alone(setting: str, config: Config) -> None:
    devices, compute = config.compute.devices, config.compute
    several_gpus = compute.accelerator != "cpu" and devices in ("auto", -1) and torch.cuda.device_count() > 1
    listed = len(devices) > 1 if isinstance(devices, list) else devices not in ("auto", -1, 1)
    if compute.num_nodes > 1 or listed or several_gpus or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{setting} measures in one process: find the value with compute.devices=1, then set it")


def _datamodule(config: Config, train_dir: Path, valid_dir: Path) -> ImageFolderDataModule:
    mean, std = input_constants(config.backbone.name)
    return ImageFolderDataModule(
        train_dir=train_dir,
        valid_dir=valid_dir,
        preprocessing=Preprocessing(size=config.preprocess.image_size, mean=mean, std=std),
        batch_size=config.train.batch_size if isinstance(config.train.batch_size, int) else 1,  # 1 until it is found
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=config.seed,
        max_pixels=config.images.max_pixels,
        fraction=config.train.fraction,
        cache_dir=Path(config.cache_dir),
    )


def _classifier(config: Config, data: ImageFolderDataModule, settled: Settled) -> Classifier:
    size, num_classes, train = config.preprocess.image_size, len(data.class_names), config.train
    backbone = build_backbone(**backbone_options(config), num_classes=num_classes, image_size=size)
    if train.progressive_resize is not None and not takes_any_size(config.backbone.name):
        raise UserError(f"train.progressive_resize: {config.backbone.name} takes images of one size; set it to null")
    module: Classifier = Classifier(
        model=_with_weights(backbone, config),
        num_classes=num_classes,
        loss=ClassificationLoss(
            kind=train.loss,
            label_smoothing=train.label_smoothing,
            gamma=train.focal_gamma,
            class_weights=balanced_weights(data.class_counts.tolist()) if train.class_weights == "balanced" else None,
        ),
        **settled.nodes(config),
        layer_decay=train.layer_decay,
        decay_norms=train.decay_norms,
        resize=ProgressiveResize(start=train.progressive_resize, max_epochs=train.max_epochs)
        if train.progressive_resize is not None
        else None,
        seed=config.seed,
    ).to(memory_format=torch.channels_last)
    if config.compute.compile:
        module.model.compile()
    else:
        use_im2col(module.model)
    return module


def _write_folder(
    config: Config,
    settled: Settled,
    module: Classifier,
    data: ImageFolderDataModule,
    calibrate: Calibrate,
    model_dir: Path,
    metrics: dict[str, float],
) -> None:
    model = module.model.cpu().float().eval().to(memory_format=torch.contiguous_format)
    expects = data.preprocessing
    as_trained = {**_as_read(config), **settled.nodes(config)}
    as_trained["train"] |= {"batch_size": settled.batch_size, "learning_rate": settled.learning_rate}
    origin = data.origin
    images, logits, targets = _validation_outputs(model, data, config.train.limit_batches)
    save_model_folder(
        model_dir,
        model,
        images=images,
        config=as_trained,
        backbone=backbone_options(config),
        class_names=data.class_names,
        input_size=expects.size,
        mean=list(expects.mean),
        std=list(expects.std),
        interpolation=expects.interpolation,
        training_data_fingerprint=origin.data,
        split_fingerprint=origin.split,
        crops_fingerprint=data.fingerprint,
        preprocessing_digest=origin.settings,
        trained_on=origin.trained_on,
        num_training_images=len(origin.trained_on),
        sources=origin.sources,
        metrics=metrics,
        **calibrate(logits, targets, lambda pixels: _logits(model, expects.normalize(pixels))),
    )


def make_trainer(config: Config, hardware: Hardware, training_dir: Path, checkpoints: Checkpoints) -> L.Trainer:
    """Build the Trainer of a run from the configuration."""
    limit = config.train.limit_batches
    callbacks: list[Any] = [
        History(training_dir),
        TrainingProgress(on_terminal=sys.stderr.isatty()),
        TrialReport(),
        FirstBatch(training_dir / "batch.png"),
    ]
    if config.train.ema is not None:
        callbacks.append(MovingAverage(config.train.ema))
    frozen = None if config.backbone.frozen else config.train.freeze_epochs
    if frozen != 0 or config.train.freeze_batch_norm:
        callbacks.append(Freeze(frozen, batch_norm=config.train.freeze_batch_norm))
    for name, node in config.callbacks.items():
        if node is not None:
            options = {k: v for k, v in with_mode(node).items() if k != "_target_"}
            if node["_target_"].endswith("ModelCheckpoint"):
                options["dirpath"] = options.get("dirpath") or checkpoints.folder  # one of the user's own stays
                if config.train.ema is not None:
                    options["save_weights_only"] = False  # the callback that puts the average in is not asked otherwise
            callbacks.append(instantiate(node["_target_"], options, f"callbacks.{name}"))
    if not any(isinstance(c, ModelCheckpoint) and c.monitor is not None for c in callbacks):
        callbacks.append(ModelCheckpoint(dirpath=checkpoints.folder, monitor="val/acc", mode="max", save_last=True))
    callbacks.append(MidEpoch(checkpoints.last, config.train.checkpoint_minutes))
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=config.compute.devices,
        num_nodes=config.compute.num_nodes,
        precision=hardware.precision,
        max_epochs=config.train.max_epochs,
        gradient_clip_val=config.train.gradient_clip,
        accumulate_grad_batches=config.train.accumulate,
        sync_batchnorm=config.compute.sync_batchnorm,
        check_val_every_n_epoch=_epochs_between_validations(config.train.validate_every, config.train.max_epochs),
        limit_train_batches=limit if limit is not None else 1.0,
        limit_val_batches=limit if limit is not None else 1.0,
        log_every_n_steps=config.train.log_every_n_steps,
        num_sanity_val_steps=0,  # the first epoch comes soon enough
        callbacks=callbacks,
        logger=_loggers(config, training_dir),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,  # ours is among the callbacks
        enable_model_summary=False,
        use_distributed_sampler=False,  # ours knows rank and world
        deterministic="warn" if hardware.accelerator != "cpu" else False,
    )


def _epochs_between_validations(every: int, epochs: int) -> int:
    """Return the greatest divisor of ``epochs`` up to ``every``: the last epoch is the one that must be validated."""
    return max(n for n in range(1, every + 1) if epochs % n == 0)


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


def _as_read(config: Config, *, keyed_only: bool = False) -> dict[str, Any]:
    """Plain data of the sections that shape a training."""
    found: dict[str, Any] = {}
    for name in SECTIONS:
        value = getattr(config, name)
        found[name] = dump(value, keyed_only=keyed_only) if hasattr(type(value), "model_fields") else value
    found["preprocess"] = {"image_size": config.preprocess.image_size}
    return found


def _best(trainer: L.Trainer) -> dict[str, Any]:
    """Return the file of the best checkpoint, and the metrics and the number of its epoch."""
    keeper = next(c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None)
    if not keeper.best_model_path:
        raise UserError(not_logged("callbacks", keeper.monitor, trainer.callback_metrics))
    epoch = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)["epoch"]
    history = next(c for c in trainer.callbacks if isinstance(c, History))
    row = next(r for r in history.rows if r["epoch"] == epoch)
    metrics = {k: v for k, v in row.items() if k == "epoch" or k.startswith("val/")}
    return {"file": keeper.best_model_path, "metrics": metrics}


def _take_best(checkpoints: Checkpoints, module: Classifier) -> dict[str, float]:
    """Load the best checkpoint's weights into ``module``; returns its metrics and epoch."""
    best = checkpoints.found["best"]
    inside = checkpoints.folder / Path(best["file"]).name  # the folder may have been moved since
    saved = torch.load(inside if inside.is_file() else best["file"], map_location="cpu", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    return dict(best["metrics"])


def _validation_outputs(
    model: nn.Module, data: ImageFolderDataModule, limit: int | None
) -> tuple[torch.Tensor, Logits, npt.NDArray[np.int64]]:
    """Return a few validation images, normalised, and logits and targets of up to ``CALIBRATED_ON``."""
    some, logits, targets = None, [], []
    count = CALIBRATED_ON if limit is None else min(CALIBRATED_ON, limit * data.batch_size)
    for images, target in data.some("valid", count):
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
    loggers = make_loggers(config.logger, training_dir=training_dir, runs_dir=Path(config.runs_dir))
    for logger in loggers:
        logger.log_hyperparams(_as_read(config))
    return loggers or False


def _quiet() -> None:
    """Silence what the libraries say to developers, not to users of objrec."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are drawn from memory
    warnings.filterwarnings("ignore", message=".*number of training batches.*log_every_n_steps.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")  # a frozen part
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # the datamodule is
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")
    warnings.filterwarnings("ignore", message=".*could not find the monitored key.*")  # of epochs not validated
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # lightning to torch
    warnings.filterwarnings("ignore", category=DeprecationWarning)
