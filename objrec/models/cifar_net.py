"""A small net for images of about 32 px, known to timm as ``cifar_net``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, nn


class CifarNet(nn.Module):
    """Seven convolutions behind a whitening layer; in evaluation the mean of the image and its mirror image.

    The first layer's kernels are the eigenvectors of 2 x 2 patches of the training data, each also negated, scaled so
    that its outputs are uncorrelated and of unit variance; they do not learn. The others begin as the identity, batch
    norms have no scale, and a global maximum feeds the head.

    Source: Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498).

    Args:
        widths: channels of the three blocks, each of which halves the resolution.
        mirror: whether evaluation looks at the mirror image too, for twice the cost.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        drop_rate: float = 0.0,
        widths: tuple[int, int, int] = (64, 256, 256),
        mirror: bool = True,
    ) -> None:
        super().__init__()
        self.mirror = mirror
        self.num_features = widths[-1]
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        before = (24, *widths[:-1])
        self.blocks = nn.Sequential(*(_Block(i, o) for i, o in zip(before, widths, strict=True)))
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's models do."""
        return self.head

    @torch.no_grad()
    def adapt_to(self, images: Tensor) -> None:
        """Set the whitening kernels from float (N, 3, H, W) training images, normalised."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([kernels, -kernels]))

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, 3, H, W), H and W at least 10, to logits (N, classes)."""
        if self.training or not self.mirror:
            return self._logits(images)
        return (self._logits(images) + self._logits(images.flip(3))) / 2

    def _logits(self, images: Tensor) -> Tensor:
        features = self.blocks(F.gelu(self.whiten(images)))
        pooled = self.drop(features.amax((2, 3)))
        return self.head(pooled) / self.num_features  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(before, after), _norm(after)
        self.conv2, self.norm2 = _convolution(after, after), _norm(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _convolution(before: int, after: int) -> nn.Conv2d:
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:before])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


@register_model  # type: ignore[untyped-decorator]  # timm is not followed
def cifar_net(pretrained: bool = False, **options: Any) -> CifarNet:
    """Create a CifarNet as ``timm.create_model`` does. Raises ValueError for trained weights: there are none."""
    if pretrained:
        raise ValueError("cifar_net has no trained weights")
    options = {k: v for k, v in options.items() if k in ("num_classes", "drop_rate", "widths", "mirror")}
    return CifarNet(**options)
