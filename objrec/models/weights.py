"""Trained weights: timm's, or those of a file that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from objrec.config.errors import UserError
from objrec.models.backbones import head_of


def load_pretrained(model: nn.Module, name: str) -> str:
    """Copy timm's trained weights into ``model``, all but a head of another size; returns a report.

    Raises:
        UserError: the weights cannot be had (no network, none published).
    """
    cure = "set backbone.pretrained=false, or name a file: backbone.weights=PATH"
    if timm.get_pretrained_cfg(name) is None or not timm.get_pretrained_cfg(name).has_weights:
        raise UserError(f"backbone.pretrained=true: there are no trained weights for {name}; {cure}")
    try:
        trained = timm.create_model(name, pretrained=True)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"backbone.pretrained=true: the weights of {name} cannot be fetched ({first}); {cure}"
        ) from error
    return load_weights(model, trained.state_dict(), origin=f"timm's {name}")


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict from a safetensors file or a weights-only torch checkpoint. Nothing else is unpickled.

    Raises:
        UserError: the file is missing, damaged, or would need unpickling of code.
    """
    if not path.is_file():
        raise UserError(f"backbone.weights={path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: Mapping[str, Tensor] = load_file(path)
            return tensors
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"backbone.weights={path}: neither safetensors nor a weights-only checkpoint ({first})"
        ) from error
    for inner in ("state_dict", "model", "model_state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(inner), Mapping):
            data = data[inner]
    if not isinstance(data, Mapping) or not all(isinstance(v, Tensor) for v in data.values()):
        raise UserError(f"backbone.weights={path}: holds no state dict")
    return data


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> str:
    """Copy the tensors that fit by name and shape; returns a report of those that did not.

    Where most names differ, tensors that all agree in order and shape are taken for the same ones.

    A head of another size begins at zero (Kolesnikov et al., "Big Transfer", 2020): the random ones of some models
    give logits so large that their gradients spoil the trained layers before the head has learnt.

    Raises:
        UserError: hardly anything fits: the weights are of another architecture.
    """
    own = model.state_dict()
    weights = {k.removeprefix("module.").removeprefix("model."): v for k, v in weights.items()}
    fit = _fitting(weights, own)
    if len(fit) < len(own) / 2 and (paired := paired_in_order(weights, model)) is not None:
        weights, origin = paired, f"{origin} (other names: tensors paired in order)"
        fit = _fitting(weights, own)
    other_shape = sorted(k for k in weights if k in own and own[k].shape != weights[k].shape)
    missing = sorted(k for k in own if k not in weights)
    unused = sorted(k for k in weights if k not in own)
    if len(fit) < len(own) / 2:
        raise UserError(
            f"{origin}: only {len(fit)} of {len(own)} tensors fit; the weights are of another architecture "
            f"(first that are missing: {', '.join(missing[:3]) or 'none'})"
        )
    model.load_state_dict(fit, strict=False)
    if other_shape:
        for parameter in head_of(model).parameters():
            nn.init.zeros_(parameter)
    said = [f"{origin}: {len(fit)} of {len(own)} tensors taken"]
    for phrase, names in (("of another shape", other_shape), ("missing", missing), ("not used", unused)):
        if names:
            said.append(f"{len(names)} {phrase} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})")
    return "; ".join(said)


def _fitting(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}


def paired_in_order(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """Return ``weights`` under the names of ``model``, as of the same architecture in another code base.

    Returns:
        None where the tensors do not agree in number, order and shape, but for the first dimension of the head's.
    """
    own = model.state_dict(keep_vars=True)
    head = {id(p) for p in head_of(model).parameters()}
    pairs = [(name, mine, other) for (name, mine), other in zip(own.items(), weights.values(), strict=False)]
    same = len(own) == len(weights) and all(
        mine.shape == other.shape or (id(mine) in head and mine.shape[1:] == other.shape[1:])
        for _, mine, other in pairs
    )
    return {name: other for name, _, other in pairs} if same else None
