"""Augmentation of whole batches, a draw for each picture, on the device that holds them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from objrec.config.schema import Augmentation


class BatchAugmentation:
    """Augment a batch of float pictures.

    Args:
        settings: the ``augmentation`` section.
    """

    def __init__(self, settings: Augmentation) -> None:
        self.settings = settings

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Map float (N, 3, H, W) to the same shape. Draws are made on the CPU, so they repeat on any device."""
        if self.settings.name == "flip_crop":
            return self._random_resized_crop(images, generator)
        if self.settings.name == "shift":
            return self._shift(images, generator)
        return images

    def _random_resized_crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A box of random area, aspect ratio and place for each picture, resized back; half of them mirrored.

        Source: Szegedy et al., "Going Deeper with Convolutions", 2014; as torchvision's RandomResizedCrop, but boxes
        that would leave the picture are narrowed instead of drawn again, so that one draw serves the whole batch.
        """
        n = len(images)
        scale, ratio = self.settings.scale or [0.08, 1.0], self.settings.ratio or [0.75, 4 / 3]
        u = torch.rand(5, n, generator=generator)
        area = scale[0] + (scale[1] - scale[0]) * u[0]
        aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[1])
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        center_x, center_y = (1 - width) * (2 * u[2] - 1), (1 - height) * (2 * u[3] - 1)  # in [-1, 1] coordinates
        mirror = torch.where(u[4] < (self.settings.flip or 0.0), -1.0, 1.0)
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = width * mirror, center_x
        theta[:, 1, 1], theta[:, 1, 2] = height, center_y
        grid = F.affine_grid(theta, list(images.shape), align_corners=False).to(images.device, images.dtype)
        out = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return out.contiguous(memory_format=torch.channels_last)

    def _shift(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        pad = self.settings.pad or 0
        offsets = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < (self.settings.flip or 0.0)
        columns = torch.arange(width).expand(n, width)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + offsets[1][:, None]
        rows = torch.arange(height).expand(n, height) + offsets[0][:, None]
        device = images.device
        padded = F.pad(images, (pad,) * 4, mode="reflect").permute(0, 2, 3, 1)
        index = torch.arange(n, device=device)[:, None, None]
        return padded[index, rows.to(device)[:, :, None], columns.to(device)[:, None, :]].permute(0, 3, 1, 2)
