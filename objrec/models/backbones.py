"""Backbones from timm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import timm
from torch import nn

from objrec.config.errors import UserError, did_you_mean
from objrec.images.preprocessing import FILTERS, Preprocessing
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


def input_preprocessing(name: str, size: int, *, trained: bool) -> Preprocessing:
    """Return the preprocessing that timm's weights for ``name`` were evaluated with.

    Args:
        size: pixels of the square input.
        trained: whether there are trained weights; random ones have no crop or filter that they are used to, and see
            the whole square.
    """
    default = timm.get_pretrained_cfg(name)
    if default is None:  # ImageNet's constants, as in torchvision's documentation
        return Preprocessing(size=size, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    constants = Preprocessing(size=size, mean=[float(v) for v in default.mean], std=[float(v) for v in default.std])
    if not trained:
        return constants
    filter_name = default.interpolation if default.interpolation in FILTERS else constants.interpolation
    # some weights were evaluated with a border around the image: there is none to cut then
    return replace(constants, interpolation=filter_name, crop_pct=min(1.0, float(default.crop_pct)))


def _keep_resolution(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # the first convolution is the stem
            module.stride = (1, 1)
            break
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()
