"""RandomResizedCrop: a box of random area, aspect ratio and place for each image, resized.

Source: Szegedy et al., "Going Deeper with Convolutions", 2014; as torchvision's RandomResizedCrop, but boxes that would
leave the image are narrowed instead of drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]

CROP_STREAM = 0  # of the batch's seed; the augmentation of the batch draws from another


@dataclass(frozen=True)
class RandomResizedCrop:
    """Which boxes to cut.

    Attributes:
        scale: least and largest share of the image's area.
        ratio: least and largest width over height.
    """

    scale: Sequence[float]
    ratio: Sequence[float]

    def boxes(self, count: int, side: int, seed: int) -> npt.NDArray[np.int64]:
        """Return left, top, right, bottom of ``count`` boxes in squares of ``side`` pixels: (count, 4)."""
        random = np.random.default_rng([seed, CROP_STREAM])
        area = random.uniform(self.scale[0], self.scale[1], count)
        aspect = np.exp(random.uniform(np.log(self.ratio[0]), np.log(self.ratio[1]), count))
        sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)]) * side
        sides = sides.round().clip(1, side).astype(np.int64)
        corners = (random.random((2, count)) * (side - sides + 1)).astype(np.int64)
        return np.concatenate([corners, corners + sides]).T


def resize_into(out: Pixels, pixels: Pixels) -> None:
    """Resize uint8 (H, W, 3) into ``out``, (size, size, 3): bilinear, antialiased.

    It leaves the interpreter lock and uses the calling thread alone. Torch's own operation on uint8 is four times as
    fast as Pillow's, provided that it reads a view with channels last and writes where the result belongs: what
    ``torch.nn.functional.interpolate`` allocates and has to be copied again costs more than the resizing.
    """
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    source, target = (torch.from_numpy(a[None]).permute(0, 3, 1, 2) for a in (pixels, out))
    torch.ops.aten._upsample_bilinear2d_aa.out(source, list(out.shape[:2]), False, None, None, out=target)
