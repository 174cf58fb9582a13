"""Bytes that claim to be a picture, checked and decoded to RGB."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from PIL import Image, UnidentifiedImageError

from objrec.images.jpeg import coded_size, decode_jpeg, plain_size
from objrec.system.reading import read_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # what web pictures come as; anything else is refused
EXTENSIONS: Final = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
BACKGROUND: Final = (128, 128, 128)  # under transparent pixels: neutral, so that neither dark nor light drawings vanish
FINER: Final = (
    1.1  # a picture is decoded to that much more than it will be resized to; see docs/benchmarks-preprocess.md
)
ORIENTATION: Final = 0x0112  # the EXIF tag
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes a picture with that EXIF orientation upright

Status = Literal["corrupt", "unsupported", "too_large", "too_small"]


class ImageError(ValueError):
    """Bytes that are not a usable picture.

    Attributes:
        status: what a manifest row or an HTTP error says in a word.
        reason: for people.
    """

    def __init__(self, status: Status, reason: str) -> None:
        self.status: Status = status
        self.reason = reason
        super().__init__(f"{status}: {reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[Status, str]]:
        return type(self), (self.status, self.reason)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as its file stores it.

    Attributes:
        pixels: RGB of shape (H, W, 3).
        width: of the picture, in pixels of ``pixels``. A reduced decoding rounds up: its last column may be covered by
            the picture in part only, and this number is not whole then.
        height: likewise.
        orientation: EXIF, 1 to 8: how to turn it upright.
    """

    pixels: npt.NDArray[np.uint8]
    width: float
    height: float
    orientation: int

    def image(self) -> Image.Image:
        """Return it upright."""
        return upright(Image.fromarray(self.pixels), self.orientation)


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture as its EXIF orientation asks."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def decode(data: bytes | Path, *, max_pixels: int, min_size: int = 1, target: int | None = None) -> Image.Image:
    """Decode a picture fully, turn it upright and convert it to RGB; arguments and errors as ``decode_stored``.

    Returns:
        The first frame, mode RGB, EXIF orientation applied, alpha laid over a neutral grey.
    """
    return decode_stored(data, max_pixels=max_pixels, min_size=min_size, target=target).image()


def decode_stored(data: bytes | Path, *, max_pixels: int, min_size: int = 1, target: int | None = None) -> Decoded:
    """Decode a picture fully and convert it to RGB.

    Args:
        data: the encoded picture, or a file.
        max_pixels: width x height above which the picture is refused, read from the header before decoding.
        min_size: pixels of the shorter side below which it is refused.
        target: pixels of the shorter side that the caller will resize to. A JPEG may then be decoded at a reduced
            size, still at least ``FINER`` times the target, which costs no visible quality and saves much of the time.

    Raises:
        ImageError: with status ``corrupt``, ``unsupported``, ``too_large`` or ``too_small``.
        UserError: the file cannot be read, which says nothing about the image.
    """
    if isinstance(data, Path):
        data = read_file(data)
    try:
        if (size := plain_size(data)) is not None:
            _check_size(*size, max_pixels=max_pixels, min_size=min_size)
            if (decoded := _load_jpeg(data, size, target)) is not None:
                return Decoded(*decoded, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked here, and of odd metadata
            with open_checked(data, max_pixels=max_pixels, min_size=min_size) as image:
                return _load(image, data, target)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("too_large", "out of memory while decoding") from None
    except Exception as error:
        raise ImageError("corrupt", str(error) or type(error).__name__) from None


def open_checked(data: bytes, *, max_pixels: int, min_size: int = 1) -> Image.Image:
    """Read the header only. Raises ImageError as ``decode_stored``."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("unsupported", f"not a picture in one of {', '.join(FORMATS)}") from None
    except Exception as error:
        raise ImageError("corrupt", f"header: {error}") from None
    _check_size(*image.size, max_pixels=max_pixels, min_size=min_size)
    return image


def _check_size(width: int, height: int, *, max_pixels: int, min_size: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < min_size:
        raise ImageError("too_small", f"{width} x {height} pixels, the shorter side is under {min_size}")


def _load_jpeg(data: bytes, size: tuple[int, int], target: int | None) -> tuple[Pixels, float, float] | None:
    """Return pixels, width and height as of ``Decoded``; None where the file is not entirely well-formed."""
    found = decode_jpeg(data, size=size, at_least=None if target is None else math.ceil(FINER * target))
    if found is None:
        return None
    pixels, eighths = found
    return pixels, size[0] * eighths / 8, size[1] * eighths / 8


def _load(image: Image.Image, data: bytes, target: int | None) -> Decoded:
    import numpy as np

    # a file whose parts disagree on its size is left to Pillow
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and coded_size(data) == image.size:
        decoded = _load_jpeg(data, image.size, target)
        if decoded is not None:
            return Decoded(*decoded, _orientation(image))
    image.load()  # verify() is not enough: damaged data shows only when it is decoded
    orientation = _orientation(image)  # only now: Pillow turns a TIFF as it loads, and a PNG may say it at its end
    pixels = np.asarray(_to_rgb(image))
    return Decoded(pixels, pixels.shape[1], pixels.shape[0], orientation)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing of the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        import numpy as np

        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(
            (wide / (65535 if wide.max(initial=0) > 255 else 255) * 255).clip(0, 255).astype(np.uint8)
        )
    if image.mode == "F":
        image = image.convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
