"""TrivialAugmentWide and RandAugment on whole batches, an operation and a strength of its own for each image.

The operations and their ranges are torchvision's (``torchvision.transforms.v2``), grouped by how they are computed:
movements are one gather, tones one table look-up, and the two that mix an image with a duller version of itself one
weighted sum. A batch costs as many steps as there are groups, not as there are images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objrec.datamodules.mixing import Array

LEVELS: Final = 31  # strengths from none to most
MOVES: Final = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
TONES: Final = ("brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize")
BLENDS: Final = ("color", "sharpness")
OPERATIONS: Final = ("identity", *MOVES, *TONES, *BLENDS)
SIGNED: Final = frozenset({*MOVES, "brightness", "contrast", "color", "sharpness"})  # go both ways

WIDE: Final = {  # operation -> its strongest form: slope, pixels, degrees, change of a factor, bits less, levels
    **dict.fromkeys(("shear_x", "shear_y"), 0.99),
    **dict.fromkeys(("translate_x", "translate_y"), 32.0),
    "rotate": 135.0,
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), 0.99),
    "posterize": 6.0,
    "solarize": 255.0,
}
RAND: Final = {
    **dict.fromkeys(("shear_x", "shear_y"), 0.3),
    "rotate": 30.0,
    **dict.fromkeys(("brightness", "contrast", "color", "sharpness"), 0.9),
    "posterize": 4.0,
    "solarize": 255.0,
}
RAND_TRANSLATE: Final = 150 / 331  # of the side


def trivial_augment(images: Tensor, random: np.random.Generator, *, fill: Tensor) -> Tensor:
    """One random operation of random strength on each image: uint8 (N, 3, H, W) to the same.

    Source: Mueller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021 (Wide).
    """
    chosen = random.integers(len(OPERATIONS), size=len(images))
    return _at_level(images, chosen, random.integers(LEVELS, size=len(images)), random, WIDE, fill)


def rand_augment(images: Tensor, random: np.random.Generator, *, num_ops: int, magnitude: int, fill: Tensor) -> Tensor:
    """``num_ops`` random operations, each of strength ``magnitude`` in 0 to 30, on each image.

    Source: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", 2019.
    """
    _, _, height, width = images.shape
    most = {**RAND, "translate_x": RAND_TRANSLATE * width, "translate_y": RAND_TRANSLATE * height}
    for _ in range(num_ops):
        chosen = random.integers(len(OPERATIONS), size=len(images))
        images = _at_level(images, chosen, np.full(len(images), magnitude), random, most, fill)
    return images


def _at_level(
    images: Tensor, chosen: Array, level: Array, random: np.random.Generator, most: Mapping[str, float], fill: Tensor
) -> Tensor:
    largest = np.array([most.get(name, 0.0) for name in OPERATIONS])
    signed = np.array([name in SIGNED for name in OPERATIONS])
    sign = np.where(signed[chosen] & (random.random(len(images)) < 0.5), -1.0, 1.0)
    return apply(images, [OPERATIONS[c] for c in chosen], sign * largest[chosen] * level / (LEVELS - 1), fill=fill)


def apply(images: Tensor, names: Sequence[str], strengths: Array, *, fill: Tensor) -> Tensor:
    """Apply to each image the operation ``names[i]`` at ``strengths[i]``.

    Args:
        images: uint8 (N, 3, H, W); left as they are.
        names: of OPERATIONS.
        strengths: float (N,); shear: slope; translate: pixels; rotate: degrees; brightness, contrast, color and
            sharpness: added to a factor of 1; posterize: bits taken away; solarize: how far below 255 inversion begins.
        fill: uint8 (3,), where a movement uncovers pixels.
    """
    out = images.clone(memory_format=torch.channels_last)
    for members, function in ((MOVES, _move), (TONES, _tone), (BLENDS, _blend)):
        places = [i for i, name in enumerate(names) if name in members]
        if places:
            where = torch.tensor(places, device=images.device)
            strength = torch.from_numpy(strengths[places].astype(np.float32)).to(images.device)
            out[where] = function(images[where], [names[i] for i in places], strength, fill)
    return out


def _mask(names: Sequence[str], name: str, like: Tensor) -> Tensor:
    return torch.tensor([n == name for n in names], device=like.device)


def _move(images: Tensor, names: Sequence[str], strength: Tensor, fill: Tensor) -> Tensor:
    """Shear (about the upper left corner), translate and rotate (about the centre), to the nearest pixel."""
    n, channels, height, width = images.shape
    device = images.device
    y, x = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )
    amount = {name: torch.where(_mask(names, name, images), strength, 0.0)[:, None, None] for name in MOVES}
    angle = torch.deg2rad(amount["rotate"])
    cos, sin = angle.cos(), angle.sin()
    from_centre = x - width / 2, y - height / 2
    source_x = cos * from_centre[0] - sin * from_centre[1] + width / 2 + amount["shear_x"] * y - amount["translate_x"]
    source_y = sin * from_centre[0] + cos * from_centre[1] + height / 2 + amount["shear_y"] * x - amount["translate_y"]
    column, row = source_x.floor().long(), source_y.floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).view(n, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    return torch.where(inside[:, None], moved, fill[:, None, None])


def _tone(images: Tensor, names: Sequence[str], strength: Tensor, fill: Tensor) -> Tensor:
    """Whatever maps each level of a channel to another: one table (N, 3, 256), one look-up."""
    levels = torch.arange(256.0, device=images.device)
    flat = images.flatten(2).long()
    amount = strength[:, None, None]
    mean = _grey(images).floor().mean((1, 2, 3))[:, None, None]
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    bits = 8 - amount.round()
    tables = {
        "brightness": levels * (1 + amount),
        "contrast": mean + (1 + amount) * (levels - mean),
        "posterize": levels - levels.remainder(2 ** (8 - bits)),
        "solarize": torch.where(levels >= 255 - amount, 255 - levels, levels),
        "autocontrast": torch.where(high > low, (levels - low) * 255 / (high - low).clamp(min=1), levels),
        "equalize": _equalizing(flat),
    }
    table = levels.expand(len(images), 3, 256)
    for name in set(names):
        table = torch.where(_mask(names, name, images)[:, None, None], tables[name], table)
    return table.clamp(0, 255).to(torch.uint8).gather(2, flat).view_as(images)


def _equalizing(flat: Tensor) -> Tensor:
    """Tables (N, 3, 256) that spread the levels of ``flat``, int64 (N, 3, pixels), evenly, as Pillow computes them."""
    n, channels, pixels = flat.shape
    offsets = 256 * torch.arange(n * channels, device=flat.device).view(n, channels, 1)
    counts = torch.bincount((flat + offsets).flatten(), minlength=n * channels * 256).view(n, channels, 256)
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (pixels - last).div(255, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    table = (below + step.div(2, rounding_mode="floor")).div(step.clamp(min=1), rounding_mode="floor").float()
    return torch.where(step > 0, table, torch.arange(256.0, device=flat.device))


def _blend(images: Tensor, names: Sequence[str], strength: Tensor, fill: Tensor) -> Tensor:
    """Between an image and its grey (color) or smoothed (sharpness) version, or beyond it."""
    pixels = images.float()
    dull = _grey(images).floor().expand_as(pixels)
    if "sharpness" in names:
        smooth = pixels.clone()
        kernel = torch.ones(1, 1, 3, 3, device=images.device)
        kernel[..., 1, 1] = 5
        smooth[..., 1:-1, 1:-1] = F.conv2d(pixels.flatten(0, 1)[:, None], kernel / 13).view(
            *pixels.shape[:2], pixels.shape[2] - 2, pixels.shape[3] - 2
        )
        dull = torch.where(_mask(names, "sharpness", images)[:, None, None, None], smooth.round(), dull)
    return torch.lerp(dull, pixels, 1 + strength[:, None, None, None]).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma, float (N, 1, H, W). Source: ITU-R BT.601."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]
