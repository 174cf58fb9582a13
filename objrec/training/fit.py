"""One training, from split folders to a model folder."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.models.card import ModelCard
from objrec.training.build import backbone_options, make_classifier, make_datamodule, settings
from objrec.training.classifier import Classifier, Diverged
from objrec.training.hardware import choose_hardware, memory_advice
from objrec.training.logged_metrics import not_logged
from objrec.training.rehearsal import check_backbone, rehearse
from objrec.training.result import Calibrate, best_checkpoint, load_best, write_model_folder
from objrec.training.resume import Checkpoints, open_checkpoints
from objrec.training.trainer import make_trainer
from objrec.training.tuner import tune

ADAPTED_TO = 2000  # training images by which a backbone may set its first layer
TERMINATED = 143  # exit status after SIGTERM, as a shell counts it


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
    data = make_datamodule(config, train_dir, valid_dir)
    training_dir = model_dir / "training"
    identity = {**settings(config, keyed_only=True), "data": data.fingerprint}
    checkpoints = open_checkpoints(training_dir, identity, config.train.resume)
    if checkpoints.finished:
        print(f"{model_dir} holds this training, finished. To train it anew: train.resume=never", flush=True)
        if not config.train.keep_checkpoints:
            checkpoints.remove()
        return ModelCard.load(model_dir)
    if not checkpoints.last.is_file():
        rehearse(backbone_options(config), config.preprocess.image_size, single=_single(config))
    steps = tune(config, hardware, data, checkpoints)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = make_classifier(config, data, steps)
    if config.backbone.weights is None and callable(adapt_to := getattr(module.model, "adapt_to", None)):
        adapt_to(torch.cat([images for images, _ in data.sample("train", ADAPTED_TO)]))
    trainer = make_trainer(config, hardware, training_dir, checkpoints)
    if "best" not in checkpoints.found:  # else only the export was interrupted
        _train(trainer, module, data, checkpoints, steps.batch_size)
    if trainer.is_global_zero:  # of several processes the first writes the folder
        data.trainer = None  # from here on it gives all validation images, not one process's share
        metrics = load_best(checkpoints, module)
        write_model_folder(config, steps, module, data, calibrate, model_dir, metrics)
        if not config.train.keep_checkpoints:
            checkpoints.remove()  # the best weights are in the folder now
    trainer.strategy.barrier("the model folder is written")
    if not trainer.is_global_zero:
        sys.exit(0)  # what follows a training, moving its output into place, is for one process too
    return ModelCard.load(model_dir)


def _single(config: Config) -> bool:
    """Whether batch norms see batches of one image."""
    return config.train.batch_size == 1 and not config.train.freeze_batch_norm and not config.backbone.frozen


def _train(
    trainer: L.Trainer, module: Classifier, data: ImageFolderDataModule, checkpoints: Checkpoints, batch_size: int
) -> None:
    """Train, from the last checkpoint on if there is one, and remember which epoch was best."""
    last = checkpoints.last if checkpoints.last.is_file() else None
    if last is not None:
        longer = (
            f" for more epochs, now {trainer.max_epochs}: the schedule spans all of them" if checkpoints.longer else ""
        )
        print(f"Resuming from {last}{longer}", flush=True)
    try:
        with memory_advice(batch_size):
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except SIGTERMException:
        print(f"Stopped at step {trainer.global_step}. Run the same command again to resume.", flush=True)
        sys.exit(TERMINATED)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning turns Ctrl-C into an exit, and then off
        kept = f"from {checkpoints.last}" if checkpoints.last.is_file() else "from the beginning: no epoch was finished"
        print(f"Interrupted in epoch {trainer.current_epoch + 1}. The same run resumes {kept}", flush=True)
        raise KeyboardInterrupt from None
    except Diverged:
        if trainer.is_global_zero and not checkpoints.longer:
            checkpoints.remove()  # a resumed run would diverge again
        raise
    except (MisconfigurationException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("Early stopping conditioned on metric"):
            raise
        raise UserError(_unmonitored(trainer, error)) from error
    if trainer.is_global_zero:
        checkpoints.remember({**checkpoints.found, "best": best_checkpoint(trainer)})


def _unmonitored(trainer: L.Trainer, error: Exception) -> str:
    """Say in our words that a callback monitors what was not logged; Lightning's words for anything else."""
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in trainer.callback_metrics:
            return not_logged("callbacks", monitor, trainer.callback_metrics)
    return str(error).strip().split("\n")[0]


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
