"""Which parameters learn, when, and at what rate."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from objrec.models.backbones import head_of


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float | None, layer_decay: float | None, decay_norms: bool
) -> list[dict[str, Any]]:
    """Group the parameters that learn by learning rate and weight decay.

    Args:
        weight_decay: of the optimizer; None where it has none.
        layer_decay: the rate of each layer is this share of the next one's, up to the head (Clark et al., "ELECTRA",
            2020; layers as timm counts them); None: all learn at ``lr``.
        decay_norms: whether weight decay pulls at biases and norms too (vectors and scalars).
    """
    if layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(
            model,
            weight_decay=weight_decay or 0.0,
            weight_decay_exclude_1d=not decay_norms,
            no_weight_decay_list=() if decay_norms else _without_decay(model),
            layer_decay=layer_decay,
        )
        found = [{"params": g["params"], "lr": lr * g["lr_scale"], "weight_decay": g["weight_decay"]} for g in groups]
    else:
        exempt = () if decay_norms or not weight_decay else _without_decay(model)
        learn = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        plain = [p for n, p in learn if exempt and (p.ndim <= 1 or n in exempt)]
        known = {id(p) for p in plain}
        rest = [p for _, p in learn if id(p) not in known]
        found = [{"params": rest, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if weight_decay is None:
        found = [{k: v for k, v in g.items() if k != "weight_decay"} for g in found]
    return [g for g in found if g["params"]]


def _without_decay(model: nn.Module) -> set[str]:
    """Names that the architecture exempts, as ViT does its position embedding; never empty."""
    named = getattr(model, "no_weight_decay", None)
    return {"", *(named() if callable(named) else ())}


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
