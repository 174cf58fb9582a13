"""The datamodule and the LightningModule of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from objrec.config.errors import UserError
from objrec.config.load import dump
from objrec.config.schema import Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.models.backbones import build_backbone, input_preprocessing, takes_any_size
from objrec.models.im2col import use_im2col
from objrec.models.weights import load_pretrained, load_weights, read_weights
from objrec.training.classifier import Classifier
from objrec.training.losses import ClassificationLoss, balanced_weights
from objrec.training.progressive_resize import ProgressiveResize

SECTIONS = ("backbone", "augmentation", "optimizer", "scheduler", "callbacks", "compute", "datamodule", "train", "seed")


@dataclass(frozen=True)
class StepSize:
    """How many images a step sees and how far it goes: as configured, or as measured on this machine."""

    batch_size: int
    learning_rate: float

    def nodes(self, config: Config) -> dict[str, dict[str, Any]]:
        """Return the nodes of optimizer and scheduler with this learning rate."""
        ratio = self.learning_rate / config.train.learning_rate
        return {
            name: {k: v * ratio if k in ("lr", "max_lr") else v for k, v in getattr(config, name).items()}
            for name in ("optimizer", "scheduler")
        }


def make_datamodule(config: Config, train_dir: Path, valid_dir: Path) -> ImageFolderDataModule:
    """Create the datamodule; with ``train.batch_size=auto`` its batches are of one image until that is measured."""
    trained = config.backbone.pretrained or config.backbone.weights is not None
    return ImageFolderDataModule(
        train_dir=train_dir,
        valid_dir=valid_dir,
        preprocessing=input_preprocessing(config.backbone.name, config.preprocess.image_size, trained=trained),
        batch_size=config.train.batch_size if isinstance(config.train.batch_size, int) else 1,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=config.seed,
        max_pixels=config.images.max_pixels,
        fraction=config.train.fraction,
        cache_dir=Path(config.cache_dir),
    )


def make_classifier(config: Config, data: ImageFolderDataModule, steps: StepSize) -> Classifier:
    """Create the module with its first weights. Raises UserError."""
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
        **steps.nodes(config),
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


def _with_weights(model: nn.Module, config: Config) -> nn.Module:
    section = config.backbone
    if section.pretrained:
        print(load_pretrained(model, section.name), flush=True)
    elif section.weights is not None:
        path = Path(section.weights)
        print(load_weights(model, read_weights(path), origin=f"backbone.weights={path}"), flush=True)
    return model


def backbone_options(config: Config) -> dict[str, Any]:
    """Return what ``build_backbone`` needs to build this architecture again; saved with the model."""
    section = config.backbone
    return {"name": section.name, "small_input": section.small_input, "drop_rate": section.drop_rate}


def settings(config: Config, *, keyed_only: bool = False) -> dict[str, Any]:
    """Return the sections that shape a training, as plain data.

    Args:
        keyed_only: leave out what does not change the result.
    """
    found: dict[str, Any] = {}
    for name in SECTIONS:
        value = getattr(config, name)
        found[name] = dump(value, keyed_only=keyed_only) if hasattr(type(value), "model_fields") else value
    found["preprocess"] = {"image_size": config.preprocess.image_size}
    return found
