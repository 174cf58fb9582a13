"""The LightningModule: a backbone, a loss, metrics, an optimizer and its schedule."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score

from objrec.config.errors import UserError
from objrec.config.metrics import with_mode
from objrec.datamodules.sampling import InOrder
from objrec.training.callbacks.freeze import Freeze
from objrec.training.instantiate import instantiate
from objrec.training.logged_metrics import not_logged, was_validated
from objrec.training.parameter_groups import parameter_groups
from objrec.training.progressive_resize import ProgressiveResize
from objrec.training.schedulers import momentum_cycle

LOWER_IT = "lower train.learning_rate, set train.gradient_clip=1, or compute.precision=32"
NEVER = 2**31  # epochs between two of Lightning's own steps of a plateau: see on_train_epoch_end
FINITE_EVERY = 50  # steps between two looks at the loss where a look waits for the accelerator


class Diverged(UserError):
    """A loss is not finite: the weights are lost."""


class Classifier(L.LightningModule):
    """Train a backbone on labelled images.

    Logged at the end of an epoch: ``train/loss``, ``train/acc`` (of the augmented images, while the weights move),
    ``val/loss`` (cross-entropy), ``val/acc``, ``val/f1`` (macro), ``val/ece`` (expected calibration error, 15 bins).
    What a step draws at random is a function of seed, epoch, batch and process, so that a resumed step draws the same.

    Args:
        model: maps float (N, 3, H, W) to logits (N, classes).
        loss: maps logits (N, classes) and targets, int64 (N,) or float (N, classes), to a scalar.
        optimizer, scheduler: config nodes; see ``configs/optimizer`` and ``configs/scheduler``.
        layer_decay, decay_norms: see ``parameter_groups``.
        resize: of training batches, or None.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        num_classes: int,
        loss: nn.Module,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        layer_decay: float | None = None,
        decay_norms: bool = False,
        resize: ProgressiveResize | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self.optimizer_node, self.scheduler_node = dict(optimizer), dict(scheduler)
        self.layer_decay, self.decay_norms = layer_decay, decay_norms
        self.resize = resize
        self.seed = seed
        options: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        self.val_metrics = MetricCollection(
            {
                "acc": MulticlassAccuracy(average="micro", **options),
                "f1": MulticlassF1Score(average="macro", **options),
                "per_class": MulticlassAccuracy(average="none", **options),
                "ece": MulticlassCalibrationError(n_bins=15, **options),
            },
            prefix="val/",
        )
        self.class_accuracy: list[float] = []  # of the last validation
        # (sum of losses, right answers, images) of this epoch, and the first step whose loss was not finite: on the
        # device, so that no step waits for it
        self._train, self._val = torch.zeros(3), torch.zeros(3)
        self._bad_step = torch.tensor(torch.inf)
        self._stopped = False
        self._planned = 0  # epochs of the training that is resumed, where this one has more

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, 3, H, W) to logits (N, classes)."""
        return self.model(images)  # type: ignore[no-any-return]

    def on_fit_start(self) -> None:
        if self._stopped:  # Lightning forgets that early stopping had ended the training that is resumed
            self.trainer.should_stop = True
        self._train, self._val = self._train.to(self.device), self._val.to(self.device)
        self._bad_step = self._bad_step.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        place = f"{self.seed} {self.current_epoch} {batch_idx} {self.global_rank}"
        digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest) >> 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        if self.resize is not None:
            images = self.resize(images, self.current_epoch)
        logits = self(images)
        loss: Tensor = self.loss(logits, targets)
        with torch.no_grad():
            hard = targets if targets.ndim == 1 else targets.argmax(dim=1)
            right = (logits.argmax(dim=1) == hard).sum()
            count = torch.full_like(right, len(hard))
            self._train += torch.stack([loss.float() * len(hard), right, count])
            step = torch.full_like(self._bad_step, self.global_step)
            self._bad_step = torch.where(loss.isfinite(), self._bad_step, torch.minimum(self._bad_step, step))
        if loss.device.type == "cpu" or batch_idx % FINITE_EVERY == 0:
            self.check_finite()
        share = self._share(batch_idx)
        return loss if share == 1 else loss * share

    def _share(self, batch_idx: int) -> float:
        """Weigh a batch of an epoch's last step, which may have fewer batches than Lightning divides by."""
        batches, together = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        left = int(batches) % together
        return together / left if left and batch_idx >= batches - left else 1.0

    def check_finite(self) -> None:
        """Raise UserError when a loss since the start was not finite."""
        if (step := self._bad_step.item()) != torch.inf:
            raise Diverged(f"the loss is not finite at step {step:.0f} (epoch {self.current_epoch}): {LOWER_IT}")

    def on_train_epoch_start(self) -> None:
        self._train.zero_()

    def on_validation_epoch_start(self) -> None:
        self._val.zero_()
        self.check_finite()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images).float()
        if self.trainer.world_size > 1:
            own = self._own(batch_idx, len(targets))
            logits, targets = logits[own], targets[own]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        self._val += torch.stack([loss, torch.zeros_like(loss), torch.full_like(loss, len(targets))])
        self.val_metrics.update(logits, targets)

    def _own(self, batch_idx: int, size: int) -> Tensor:
        """Return which images of this process's batch are no repeats of another's: see ``InOrder``."""
        data: Any = self.trainer.datamodule
        count = len(data.listings["valid"].names)
        order = InOrder(count, data.batch_size, rank=self.global_rank, world=self.trainer.world_size)
        first = order.range.start + batch_idx * data.batch_size
        return torch.arange(first, first + size, device=self.device) >= order.own

    def on_validation_epoch_end(self) -> None:
        """Log the epoch: here, since callbacks look before the module's own end of the epoch comes."""
        train, val = (
            self.trainer.strategy.reduce(t.clone(), reduce_op="sum").tolist() for t in (self._train, self._val)
        )
        metrics = self.val_metrics.compute()
        self.val_metrics.reset()
        self.class_accuracy = metrics.pop("val/per_class").tolist()
        if train[2]:
            metrics |= {"train/loss": train[0] / train[2], "train/acc": train[1] / train[2]}
        metrics["val/loss"] = val[0] / val[2]
        if not math.isfinite(metrics["val/loss"]):  # the last step may have lost the weights
            raise Diverged(
                f"the validation loss is not finite at step {self.global_step} (epoch {self.current_epoch}): {LOWER_IT}"
            )
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in ("train/loss", "val/loss", "val/acc"), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # nothing can be resumed from weights that are lost
        checkpoint["train_totals"] = self._train.cpu()
        checkpoint["max_epochs"] = self.trainer.max_epochs
        checkpoint["stopped"] = self.trainer.should_stop

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._train = checkpoint["train_totals"]
        self._stopped = checkpoint["stopped"]
        if checkpoint["max_epochs"] != self.trainer.max_epochs:
            self._planned = checkpoint["max_epochs"]
            for state in checkpoint["lr_schedulers"]:  # these span the epochs that are now wanted
                state.pop("total_steps", None)
                state.pop("_schedule_phases", None)

    def on_train_start(self) -> None:
        """Put a schedule that has become longer where it is by now: the rate in the optimizer is of the old one."""
        if self._planned and self._spans_run():
            (entry,) = self.trainer.lr_scheduler_configs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "please use get_last_lr", which is of the old schedule
                rates = entry.scheduler.get_lr()
            for group, rate in zip(entry.scheduler.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _spans_run(self) -> bool:
        """Whether the scheduler depends on the number of steps of the whole training."""
        node = self.scheduler_node
        return node.get("total_steps") == "auto" or node["_target_"].endswith(("CosineWarmup", "LinearDecay"))

    def on_train_epoch_end(self) -> None:
        """Step a plateau here, before the checkpoint of the epoch: Lightning does so after it, and never again."""
        (entry,) = self.trainer.lr_scheduler_configs
        if isinstance(entry.scheduler, ReduceLROnPlateau) and was_validated(self.trainer):
            metrics = self.trainer.callback_metrics
            if entry.monitor not in metrics:
                raise UserError(not_logged("scheduler.monitor", entry.monitor, metrics))
            entry.scheduler.step(metrics[entry.monitor])

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients here: Lightning refuses to where the optimizer is a fused one."""
        if gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Create the optimizer with its parameter groups. Raises UserError."""
        node = dict(self.optimizer_node)
        if self._trainer is not None and "fused" in node:
            thaws = any(isinstance(c, Freeze) and c.epochs for c in self.trainer.callbacks)
            # it would undo the scaling of gradients itself, after they were clipped; and torch's fused SGD fails when
            # some parameters have momentum already and others not yet
            node["fused"] = node["fused"] and self.trainer.precision != "16-mixed" and not thaws
        groups = parameter_groups(
            self.model,
            lr=node["lr"],
            weight_decay=node.get("weight_decay"),
            layer_decay=self.layer_decay,
            decay_norms=self.decay_norms,
        )
        return instantiate(node.pop("_target_"), node, "optimizer", groups)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        options = dict(self.scheduler_node)
        options = with_mode(options)
        interval, monitor = options.pop("interval"), options.pop("monitor")
        target = options.pop("_target_")
        if self._spans_run():
            options["total_steps"] = int(self.trainer.estimated_stepping_batches)
        if "max_lr" in options:
            scale = options["max_lr"] / self.optimizer_node["lr"]
            options["max_lr"] = [group["lr"] * scale for group in optimizer.param_groups]
        if target.endswith("OneCycleLR"):
            options = {**momentum_cycle(optimizer, options.pop("momentum_swing", 0.0)), **options}
        scheduler = instantiate(target, options, "scheduler", optimizer)
        entry = {"scheduler": scheduler, "interval": interval, **({"monitor": monitor} if monitor else {})}
        if isinstance(scheduler, ReduceLROnPlateau):
            entry["frequency"] = NEVER
        return {"optimizer": optimizer, "lr_scheduler": entry}
