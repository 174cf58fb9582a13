"""RandomResizedCrop: a box of random area, aspect ratio and place for each picture, resized.

Source: Szegedy et al., "Going Deeper with Convolutions", 2014; as torchvision's RandomResizedCrop, but boxes that would
leave the picture are narrowed instead of drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

Pixels = npt.NDArray[np.uint8]

CROP_STREAM = 0  # of the batch's seed; the augmentation of the batch draws from another


@dataclass(frozen=True)
class RandomResizedCrop:
    """Which boxes to cut.

    Attributes:
        scale: least and largest share of the picture's area.
        ratio: least and largest width over height.
    """

    scale: Sequence[float]
    ratio: Sequence[float]

    def boxes(self, count: int, side: int, seed: int) -> npt.NDArray[np.int64]:
        """Return left, top, right, bottom of ``count`` boxes in squares of ``side`` pixels: (count, 4)."""
        random = np.random.default_rng([seed, CROP_STREAM])
        area = random.uniform(*self.scale, count)
        aspect = np.exp(random.uniform(*np.log(self.ratio), count))
        sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)]) * side
        sides = sides.round().clip(1, side).astype(np.int64)
        corners = (random.random((2, count)) * (side - sides + 1)).astype(np.int64)
        return np.concatenate([corners, corners + sides]).T


def resize(pixels: Pixels, size: int) -> Pixels:
    """Resize uint8 (H, W, 3) to (size, size, 3), bilinear and antialiased.

    On uint8 and one thread: the fastest of those measured, and it leaves the interpreter lock.
    """
    if pixels.shape[:2] == (size, size):
        return pixels
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    resized = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
