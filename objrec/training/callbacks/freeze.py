"""Training the head alone, for some epochs or for good."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.nn.modules.batchnorm import _BatchNorm

from objrec.models.backbones import head_of


class Freeze(L.Callback):
    """Train the head alone for some epochs, or for good; the frozen part keeps its batch statistics.

    With ``batch_norm`` they are kept, and used, when it has thawed too: those of a few images are poor, and a running
    mean of them lags behind weights that move (the advice of the Keras guide to transfer learning).

    With several processes the frozen gradients are computed and dropped, because DDP fixes what it exchanges at
    the start.

    Args:
        epochs: how long; None: for good.
        batch_norm: whether batch norms go on as they came.
    """

    def __init__(self, epochs: int | None, *, batch_norm: bool = False) -> None:
        self.epochs, self.batch_norm = epochs, batch_norm

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        head = {id(p) for p in head_of(pl_module.model).parameters()}
        self._body = [p for p in pl_module.model.parameters() if id(p) not in head]
        if self.epochs is None:
            for p in self._body:
                p.requires_grad_(False)

    def _frozen(self, trainer: L.Trainer) -> bool:
        return self.epochs is None or trainer.current_epoch < self.epochs

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        frozen = self._frozen(trainer)
        head = set(head_of(pl_module.model).modules())
        for module in pl_module.model.modules():
            kept = self.batch_norm and isinstance(module, _BatchNorm)
            module.training = (not frozen or module in head) and not kept
        if self.epochs is not None and trainer.world_size == 1:
            for p in self._body:
                p.requires_grad_(not frozen)
                p.grad = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply(trainer, pl_module)  # an epoch resumed in its middle does not start again

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._apply(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.world_size > 1 and self._frozen(trainer):
            for p in self._body:
                p.grad = None
