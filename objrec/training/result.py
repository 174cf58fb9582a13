"""What a training leaves: its best checkpoint, as a model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.models.folder import save_model_folder
from objrec.training.build import StepSize, backbone_options, settings
from objrec.training.callbacks.history import History
from objrec.training.classifier import Classifier
from objrec.training.logged_metrics import not_logged
from objrec.training.resume import Checkpoints

CALIBRATED_ON = 2000  # validation images: a temperature and a percentile need no more, and fp32 is slow

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
# (validation logits (N, classes), targets (N,), the model as a function of uint8 (M, H, W, 3)) -> fields of the card
Calibrate = Callable[[Logits, npt.NDArray[np.int64], Callable[[Pixels], Logits]], dict[str, Any]]


def best_checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """Return the file of the best checkpoint, and the metrics and the number of its epoch. Raises UserError."""
    keeper = next(c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor is not None)
    if not keeper.best_model_path:
        raise UserError(not_logged("callbacks", keeper.monitor, trainer.callback_metrics))
    epoch = torch.load(keeper.best_model_path, map_location="cpu", weights_only=True)["epoch"]
    history = next(c for c in trainer.callbacks if isinstance(c, History))
    row = next(r for r in history.rows if r["epoch"] == epoch)
    metrics = {k: v for k, v in row.items() if k == "epoch" or k.startswith("val/")}
    return {"file": keeper.best_model_path, "metrics": metrics}


def load_best(checkpoints: Checkpoints, module: Classifier) -> dict[str, float]:
    """Load the best checkpoint's weights into ``module``; returns its metrics and epoch."""
    best = checkpoints.found["best"]
    inside = checkpoints.folder / Path(best["file"]).name  # the folder may have been moved since
    saved = torch.load(inside if inside.is_file() else best["file"], map_location="cpu", weights_only=True)
    module.load_state_dict(saved["state_dict"])
    return dict(best["metrics"])


def write_model_folder(
    config: Config,
    steps: StepSize,
    module: Classifier,
    data: ImageFolderDataModule,
    calibrate: Calibrate,
    model_dir: Path,
    metrics: dict[str, float],
) -> None:
    """Calibrate the model on validation images and save it with its card."""
    model = module.model.cpu().float().eval().to(memory_format=torch.contiguous_format)
    expects = data.preprocessing
    as_trained = {**settings(config), **steps.nodes(config)}
    as_trained["train"] |= {"batch_size": steps.batch_size, "learning_rate": steps.learning_rate}
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
        crop_pct=expects.crop_pct,
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


def _validation_outputs(
    model: nn.Module, data: ImageFolderDataModule, limit: int | None
) -> tuple[torch.Tensor, Logits, npt.NDArray[np.int64]]:
    """Return a few validation images, normalised, and logits and targets of up to ``CALIBRATED_ON``."""
    count = CALIBRATED_ON if limit is None else min(CALIBRATED_ON, limit * data.batch_size)
    first, logits, targets = None, [], []
    for images, target in data.sample("valid", count):
        first = images[:16].contiguous() if first is None else first
        logits.append(_logits(model, images.contiguous().numpy()))
        targets.append(target.numpy())
    assert first is not None
    return first, np.concatenate(logits), np.concatenate(targets)


def _logits(model: nn.Module, inputs: npt.NDArray[np.float32]) -> Logits:
    with torch.inference_mode():
        parts = [model(torch.from_numpy(part)).numpy() for part in np.array_split(inputs, -(-len(inputs) // 256))]
    return np.concatenate(parts)
