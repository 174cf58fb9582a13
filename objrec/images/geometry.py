"""From any picture to the model's input: one definition for data, evaluation, prediction and serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from PIL import Image

from objrec.images.decode import decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_and_crop(image: Image.Image, size: int, interpolation: str = "bicubic") -> Image.Image:
    """Scale the shorter side to ``size`` keeping the aspect ratio, then cut the central square.

    Scaling and cutting are one operation on the source box, so nothing outside the square is computed.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), FILTERS[interpolation], box=(left, top, left + side, top + side))


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a model expects of a picture; travels in ``model.json``.

    Attributes:
        size: pixels of the square input.
        mean: per RGB channel, of values in [0, 1].
        std: likewise.
        interpolation: a name in FILTERS.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"

    def pixels(self, data: bytes | Path, *, max_pixels: int) -> npt.NDArray[np.uint8]:
        """Decode and crop; returns uint8 of shape (size, size, 3). Raises ImageError."""
        import numpy as np

        image = decode(data, max_pixels=max_pixels, target=self.size)
        return np.asarray(resize_and_crop(image, self.size, self.interpolation))

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn uint8 (N, H, W, 3) into normalised float32 (N, 3, H, W)."""
        import numpy as np

        scale = (1 / (255 * np.asarray(self.std, dtype=np.float64))).astype(np.float32)
        shift = (np.asarray(self.mean, dtype=np.float64) / np.asarray(self.std, dtype=np.float64)).astype(np.float32)
        return np.ascontiguousarray((pixels.astype(np.float32) * scale - shift).transpose(0, 3, 1, 2))
