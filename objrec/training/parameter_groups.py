"""Groups of parameters by learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float | None, layer_decay: float | None, decay_norms: bool
) -> list[dict[str, Any]]:
    """Group the parameters that learn by learning rate and weight decay.

    Args:
        weight_decay: of the optimizer; None where it has none.
        layer_decay: the rate of each layer is this share of the next one's, up to the head (Clark et al., "ELECTRA",
            2020; layers as timm counts them); None: all learn at ``lr``.
        decay_norms: whether biases and norms (vectors and scalars) have weight decay too.
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
