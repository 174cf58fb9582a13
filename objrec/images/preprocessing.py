"""From any image to the model's input: one definition for data, evaluation, prediction and serving."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from objrec.images.decode import TURNS, Decoded, decode_stored
from objrec.images.resize import FILTERS, resize_box

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["FILTERS", "Preprocessing", "crop_square", "resize_and_crop"]


def crop_square(
    image: Decoded, size: int, interpolation: str = "bicubic", crop_pct: float = 1.0
) -> npt.NDArray[np.uint8]:
    """Cut the central square, scale it to ``size`` and turn it upright.

    Args:
        crop_pct: share of the shorter side that the square takes, in (0, 1].

    Returns:
        RGB of shape (size, size, 3). The whole of an image that has that size already is returned as it is.
    """
    import numpy as np

    pixels = image.pixels
    if crop_pct != 1 or pixels.shape[:2] != (size, size) or (image.width, image.height) != (size, size):
        # a window off by a pixel costs more than a poor filter: the box is computed from the exact extent
        side = crop_pct * min(image.width, image.height)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        pixels = resize_box(pixels, (left, top, left + side, top + side), size, interpolation)
    if image.orientation in TURNS:  # the central square of a turned image is the turned central square
        pixels = np.asarray(Image.fromarray(pixels).transpose(TURNS[image.orientation]))
    return pixels


def resize_and_crop(image: Image.Image, size: int, interpolation: str = "bicubic") -> Image.Image:
    """``crop_square`` of an upright RGB image that Pillow holds."""
    if image.size == (size, size):
        return image
    import numpy as np

    return Image.fromarray(crop_square(Decoded(np.asarray(image), *image.size, 1), size, interpolation))


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a model expects of an image; travels in ``model.json``.

    Attributes:
        size: pixels of the square input.
        mean: per RGB channel, of values in [0, 1].
        std: likewise.
        interpolation: a name in FILTERS.
        crop_pct: share of the shorter side that the central square takes, in (0, 1].
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    @property
    def target(self) -> int:
        """Pixels of the shorter side of the whole image at the scale of the input; see ``decode_stored``."""
        return math.ceil(self.size / self.crop_pct)

    def pixels(self, data: bytes | Path, *, max_pixels: int, patient: bool = True) -> npt.NDArray[np.uint8]:
        """Decode (see ``decode_stored``) and crop; returns uint8 of shape (size, size, 3). Raises ImageError."""
        image = decode_stored(data, max_pixels=max_pixels, target=self.target, patient=patient)
        return crop_square(image, self.size, self.interpolation, self.crop_pct)

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn uint8 (N, H, W, 3) into normalised float32 (N, 3, H, W)."""
        import numpy as np

        scale = (1 / (255 * np.asarray(self.std, dtype=np.float64))).astype(np.float32)
        shift = (np.asarray(self.mean, dtype=np.float64) / np.asarray(self.std, dtype=np.float64)).astype(np.float32)
        return np.ascontiguousarray((pixels.astype(np.float32) * scale - shift).transpose(0, 3, 1, 2))
