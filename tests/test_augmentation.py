"""Augmentation: draws repeat, operations are those of the literature, targets follow their pictures."""

from __future__ import annotations

import numpy as np
import torch

from objrec.config.load import load_config
from objrec.datamodules.augmentation import BatchAugmentation

FILL = [124, 116, 104]


def pictures(n: int = 8, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, uint8 (N, 3, size, size), channels last."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def augment(
    *overrides: str, images: torch.Tensor | None = None, epoch: int = 0, seed: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    images = pictures() if images is None else images
    settings = load_config(overrides).augmentation
    targets = torch.arange(len(images)) % 4
    before = images.clone()
    out = BatchAugmentation(settings, fill=FILL, num_classes=4)(
        images, targets, indices=np.arange(len(images)), epoch=epoch, seed=seed
    )
    assert torch.equal(images, before), "the pictures of a store may not be written to"
    return out


def test_alternate_flip_shows_every_picture_both_ways_in_two_epochs() -> None:
    images = pictures(400, 8)
    options = ["augmentation=shift", "augmentation.pad=0", "augmentation.flip_mode=alternate"]
    first, second, third = (augment(*options, images=images, epoch=e, seed=e)[0] for e in range(3))
    mirrored = images.flip(3)
    turned = (first == mirrored).flatten(1).all(1)
    assert torch.equal(first[~turned], images[~turned])
    assert torch.equal(second[turned], images[turned]) and torch.equal(second[~turned], mirrored[~turned])
    assert torch.equal(first, third)
    assert 150 < turned.sum() < 250
    neighbours = turned[1:] == turned[:-1]
    assert 130 < neighbours.sum() < 270, "which are mirrored first should not follow from the order"
