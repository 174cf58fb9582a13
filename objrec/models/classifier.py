"""The LightningModule: a backbone, a loss, metrics, an optimizer and its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from hydra.utils import get_class
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from objrec.config.errors import UserError


class Classifier(L.LightningModule):
    """Train a backbone on labelled pictures.

    Args:
        model: maps float (N, 3, H, W) to logits (N, classes).
        optimizer, scheduler: config nodes; see ``configs/optimizer`` and ``configs/scheduler``.
        label_smoothing: in [0, 1) (Szegedy et al., 2016).
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        num_classes: int,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_node, self.scheduler_node = dict(optimizer), dict(scheduler)
        self.label_smoothing = label_smoothing
        metrics = MetricCollection({"acc": MulticlassAccuracy(num_classes, average="micro")})
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, 3, H, W) to logits (N, classes)."""
        return self.model(images)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        logits = self(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}): "
                "lower train.learning_rate, set train.gradient_clip=1, or compute.precision=32"
            )
        self.train_loss.update(loss.detach(), weight=len(targets))
        labels = targets if targets.ndim == 1 else targets.argmax(1)  # of a mixed picture: the class it shows most of
        self.train_metrics.update(logits.detach(), labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.val_loss.update(F.cross_entropy(logits.float(), targets), weight=len(targets))
        self.val_metrics.update(logits, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = _create(self.optimizer_node, "optimizer", self.parameters())
        options = dict(self.scheduler_node)
        interval, monitor = options.pop("interval"), options.pop("monitor")
        total = int(self.trainer.estimated_stepping_batches)
        target = options["_target_"]
        if options.get("total_steps") == "auto" or target.endswith("CosineWarmup"):
            options["total_steps"] = total
        scheduler = _create(options, "scheduler", optimizer)
        entry = {"scheduler": scheduler, "interval": interval, **({"monitor": monitor} if monitor else {})}
        return {"optimizer": optimizer, "lr_scheduler": entry}


def _create(node: Mapping[str, Any], what: str, *positional: Any) -> Any:
    """Create what a config node names, with a line for the user where it cannot be."""
    options = {k: v for k, v in node.items() if k != "_target_"}
    try:
        return get_class(node["_target_"])(*positional, **options)
    except Exception as error:
        raise UserError(f"{what}: {node['_target_']} cannot be created: {error}") from error
