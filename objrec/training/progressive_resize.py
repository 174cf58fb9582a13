"""Progressive resizing: small images first, which cost less, then larger ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

GRAIN = 8  # pixels; sizes are multiples of it
# Pixels. Below it the last layers of most backbones see a single pixel, for which torch 2.15 was seen to compute bf16
# gradients that are not finite on a CPU.
SMALLEST = 32


class ProgressiveResize:
    """Resize training batches on their device by a plan over the epochs.

    Source: Howard, "Training ImageNet in 18 minutes", fast.ai 2018. Validation always sees the whole size.

    Args:
        start: share of the image's size in the first epoch.
        max_epochs: of the training; the whole size is reached after ``over`` of them.
    """

    def __init__(self, *, start: float, max_epochs: int, over: float = 0.6) -> None:
        self.start = start
        self.growing = max(1, round(max_epochs * over))

    def size(self, full: int, epoch: int) -> int:
        """Return the edge in pixels of images in ``epoch`` (0 is the first)."""
        share = min(1.0, self.start + (1 - self.start) * epoch / self.growing)
        return full if share >= 1 else min(full, max(SMALLEST, round(full * share / GRAIN) * GRAIN))

    def __call__(self, images: Tensor, epoch: int) -> Tensor:
        """Map float (N, 3, H, H) to (N, 3, size, size)."""
        size = self.size(images.shape[-1], epoch)
        if size == images.shape[-1]:
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
