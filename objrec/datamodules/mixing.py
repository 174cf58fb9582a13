"""Mixing of images and of their targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[Any]


def mixup(
    images: Tensor, targets: Tensor, random: np.random.Generator, *, alpha: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Lay another image of the batch over each: uint8 (N, 3, H, W), float32 (N, classes).

    Each image has a weight of its own, from Beta(alpha, alpha). Source: Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", 2017.
    """
    others = torch.from_numpy(random.permutation(len(images))).to(images.device)
    weights = torch.from_numpy(random.beta(alpha, alpha, len(images)).astype(np.float32)).to(images.device)
    w = weights[:, None, None, None]
    mixed = (images * w).addcmul_(images[others], 1 - w).round_().to(torch.uint8)
    return mixed, _mixed_targets(targets, targets[others], weights, num_classes)


def cutmix(
    images: Tensor, targets: Tensor, random: np.random.Generator, *, alpha: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Put a box of another image of the batch into each: uint8 (N, 3, H, W), float32 (N, classes).

    Targets are weighted by the pixels that are seen. Source: Yun et al., "CutMix", 2019.
    """
    n, _, height, width = images.shape
    others = torch.from_numpy(random.permutation(n)).to(images.device)
    share = np.sqrt(1 - random.beta(alpha, alpha, n))
    size = np.array([[height], [width]])
    sides = (share * size).round()
    first = random.integers(0, size, (2, n)) - sides // 2
    first, end = first.clip(0, size), (first + sides).clip(0, size)
    covered = (end - first).prod(axis=0) / (height * width)
    mixed = torch.where(boxes(images, first, end), images[others], images)
    weights = torch.from_numpy((1 - covered).astype(np.float32)).to(images.device)
    return mixed, _mixed_targets(targets, targets[others], weights, num_classes)


def boxes(images: Tensor, first: Array, end: Array) -> Tensor:
    """Bool (N, 1, H, W): rows first[0] to end[0] and columns first[1] to end[1] of each image; both (2, N)."""
    _, _, height, width = images.shape
    rows, columns = np.arange(height), np.arange(width)
    row = (rows >= first[0][:, None]) & (rows < end[0][:, None])
    column = (columns >= first[1][:, None]) & (columns < end[1][:, None])
    device = images.device
    return torch.from_numpy(row).to(device)[:, None, :, None] & torch.from_numpy(column).to(device)[:, None, None, :]


def _mixed_targets(own: Tensor, other: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    w = weights[:, None]
    return F.one_hot(own, num_classes) * w + F.one_hot(other, num_classes) * (1 - w)
