"""Backbones from timm, with the trained weights that a user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from objrec.config.errors import UserError, did_you_mean
from objrec.models import cifar_net  # noqa: F401  # makes itself known to timm


def build_backbone(
    *, name: str, num_classes: int, image_size: int, small_input: bool = False, drop_rate: float = 0.0
) -> nn.Module:
    """Create a timm model with random weights.

    Args:
        image_size: pixels; fixes the token grid of models that need to know it.
        small_input: keep the resolution in the stem (no stride, no pooling), for images of 32 to 64 px.

    Raises:
        UserError: timm has no such model.
    """
    if not timm.is_model(name):
        raise UserError(f"backbone.name={name}: timm has no such model.{did_you_mean(name, timm.list_models())}")
    options: dict[str, Any] = {"drop_rate": drop_rate}
    default = timm.get_pretrained_cfg(name)
    if default is not None and default.fixed_input_size:
        options["img_size"] = image_size
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    if small_input:
        if hasattr(model, "patch_embed"):
            raise UserError(f"backbone.small_input=true: {name} cuts images into patches and has no stem to change")
        _keep_resolution(model)
    return model


def head_of(model: nn.Module) -> nn.Module:
    """Return the classification head of a timm model, or of any model the last linear layer.

    Raises:
        UserError: there is none.
    """
    if callable(get := getattr(model, "get_classifier", None)):
        found = get()
        found = nn.ModuleList(found) if isinstance(found, (list, tuple)) else found
        if isinstance(found, nn.Module) and any(True for _ in found.parameters()):
            return found
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError("backbone.frozen and train.freeze_epochs need a backbone with a linear head")
    return linear[-1]


def takes_any_size(name: str) -> bool:
    """Whether the model called ``name`` takes images of any size."""
    default = timm.get_pretrained_cfg(name)
    return default is None or not default.fixed_input_size


def usual_size(name: str) -> int | None:
    """Return the pixels of the edge of the images that ``name`` was made for, where timm says so."""
    default = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return None if default is None else int(default.input_size[-1])


def input_constants(name: str) -> tuple[list[float], list[float]]:
    """Return the mean and std per RGB channel that timm's weights for ``name`` were trained with."""
    default = timm.get_pretrained_cfg(name)
    if default is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as in torchvision's documentation
    return [float(v) for v in default.mean], [float(v) for v in default.std]


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

    A head of another size begins at zero (Kolesnikov et al., "Big Transfer", 2020): the random ones of some models
    give logits so large that their gradients spoil the trained layers before the head has learnt.

    Raises:
        UserError: hardly anything fits: the weights are of another architecture.
    """
    own = model.state_dict()
    weights = {k.removeprefix("module.").removeprefix("model."): v for k, v in weights.items()}
    fit = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
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


def _keep_resolution(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # the first convolution is the stem
            module.stride = (1, 1)
            break
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()
