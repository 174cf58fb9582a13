"""The Trainer of a configuration, with its callbacks and loggers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from objrec.config.metrics import with_mode
from objrec.config.schema import Config
from objrec.training.build import settings
from objrec.training.callbacks.checkpoint import AtomicCheckpointIO, MidEpochCheckpoint, NamedCheckpoint
from objrec.training.callbacks.freeze import Freeze
from objrec.training.callbacks.history import History
from objrec.training.callbacks.moving_average import MovingAverage
from objrec.training.callbacks.trial_report import TrialReport
from objrec.training.display.batch_preview import FirstBatch
from objrec.training.display.loggers import make_loggers
from objrec.training.display.progress import TrainingProgress
from objrec.training.hardware import Hardware
from objrec.training.instantiate import instantiate
from objrec.training.resume import Checkpoints


def make_trainer(config: Config, hardware: Hardware, training_dir: Path, checkpoints: Checkpoints) -> L.Trainer:
    """Create the Trainer of a run."""
    limit = config.train.limit_batches
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
        callbacks=_callbacks(config, training_dir, checkpoints),
        logger=_loggers(config, training_dir),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,  # ours is among the callbacks
        enable_model_summary=False,
        use_distributed_sampler=False,  # ours knows rank and world
        deterministic="warn" if hardware.accelerator != "cpu" else False,
    )


def _callbacks(config: Config, training_dir: Path, checkpoints: Checkpoints) -> list[L.Callback]:
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
                if config.train.ema is not None:  # WeightAveraging replaces the weights in whole checkpoints only
                    options["save_weights_only"] = False
            callbacks.append(NamedCheckpoint.of(instantiate(node["_target_"], options, f"callbacks.{name}"), name))
    if not any(isinstance(c, ModelCheckpoint) and c.monitor is not None for c in callbacks):
        callbacks.append(ModelCheckpoint(dirpath=checkpoints.folder, monitor="val/acc", mode="max", save_last=True))
    callbacks.append(MidEpochCheckpoint(checkpoints.last, config.train.checkpoint_minutes))
    return callbacks


def _epochs_between_validations(every: int, epochs: int) -> int:
    """Return the greatest divisor of ``epochs`` up to ``every``: the last epoch is the one that must be validated."""
    return max(n for n in range(1, every + 1) if epochs % n == 0)


def _loggers(config: Config, training_dir: Path) -> Any:
    loggers = make_loggers(config.logger, training_dir=training_dir, runs_dir=Path(config.runs_dir))
    for logger in loggers:
        logger.log_hyperparams(settings(config))
    return loggers or False
