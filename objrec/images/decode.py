"""Bytes that claim to be an image, checked and decoded to RGB."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from PIL import Image, UnidentifiedImageError

from objrec.images.colours import UndeclaredRange, to_rgb
from objrec.images.formats import FORMATS as FORMATS
from objrec.images.formats import SUFFIXES as SUFFIXES
from objrec.images.formats import quieten_libtiff, readable_formats, why_unsupported
from objrec.images.jpeg import coded_size, decode_jpeg, plain_size
from objrec.system.reading import read_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

SMALL: Final = 128  # pixels of a target below which decoding finer costs little and shows
FINER, FINER_SMALL = 1.1, 1.5  # times the target: an image is decoded to that much; see docs/benchmarks-preprocess.md
ORIENTATION: Final = 0x0112  # the EXIF tag
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes an image with that EXIF orientation upright

Status = Literal["corrupt", "unsupported", "too_large", "too_small"]


class ImageError(ValueError):
    """Bytes that are not a usable image.

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


class NotReduced(ImageError):
    """A JPEG that may only be decoded at full size, which takes more memory."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as its file stores it.

    Attributes:
        pixels: RGB of shape (H, W, 3).
        width: of the image, in pixels of ``pixels``. A reduced decoding rounds up: its last column may be covered by
            the image in part only, and this number is not whole then.
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
    """Turn an image as its EXIF orientation asks."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def decode(data: bytes | Path, *, max_pixels: int, min_size: int = 1, target: int | None = None) -> Image.Image:
    """Decode an image fully, turn it upright and convert it to RGB; arguments and errors as ``decode_stored``.

    Returns:
        The first frame, mode RGB, EXIF orientation applied, alpha laid over a neutral grey.
    """
    return decode_stored(data, max_pixels=max_pixels, min_size=min_size, target=target).image()


def decode_stored(
    data: bytes | Path, *, max_pixels: int, min_size: int = 1, target: int | None = None, patient: bool = True
) -> Decoded:
    """Decode an image fully and convert it to RGB.

    Args:
        data: the encoded image, or a file.
        max_pixels: width x height above which the image is refused, read from the header before decoding.
        min_size: pixels of the shorter side below which it is refused.
        target: pixels of the shorter side that the caller will resize to. A JPEG may then be decoded at a reduced
            size, still ``FINER`` times the target or more (``FINER_SMALL`` for a small one), which saves much time.
        patient: whether to try a JPEG that is not entirely well-formed at full size.

    Raises:
        ImageError: with status ``corrupt``, ``unsupported``, ``too_large`` or ``too_small``.
        NotReduced: ``patient`` is false and the image needs patience.
        UserError: the file cannot be read, which says nothing about the image.
    """
    if isinstance(data, Path):
        data = read_file(data)
    try:
        if (size := plain_size(data)) is not None:
            _check_size(*size, max_pixels=max_pixels, min_size=min_size)
            if (decoded := _load_jpeg(data, size, target)) is not None:
                return Decoded(*decoded, 1)
            if not patient:
                raise NotReduced("corrupt", "not entirely well-formed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is checked here, and of odd metadata
            with open_checked(data, max_pixels=max_pixels, min_size=min_size) as image:
                return _load(image, data, target, patient=patient)
    except ImageError:
        raise
    except UndeclaredRange as error:
        raise ImageError("unsupported", str(error)) from None
    except MemoryError:
        raise ImageError("too_large", "out of memory while decoding") from None
    except Exception as error:
        raise ImageError("corrupt", str(error) or type(error).__name__) from None


def open_checked(data: bytes, *, max_pixels: int, min_size: int = 1) -> Image.Image:
    """Read the header only. Raises ImageError as ``decode_stored``."""
    try:
        image = Image.open(io.BytesIO(data), formats=readable_formats(data))
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise ImageError("unsupported", why_unsupported(data)) from None
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
    finer = FINER if target is None or target >= SMALL else FINER_SMALL
    found = decode_jpeg(data, size=size, at_least=None if target is None else math.ceil(finer * target))
    if found is None:
        return None
    pixels, eighths = found
    return pixels, size[0] * eighths / 8, size[1] * eighths / 8


def _load(image: Image.Image, data: bytes, target: int | None, *, patient: bool) -> Decoded:
    import numpy as np

    # a file whose parts disagree on its size is left to Pillow
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and coded_size(data) == image.size:
        decoded = _load_jpeg(data, image.size, target)
        if decoded is not None:
            return Decoded(*decoded, _orientation(image))
    if image.format in ("JPEG", "MPO") and not patient:
        raise NotReduced("corrupt", "not entirely well-formed")
    if image.format == "TIFF":
        quieten_libtiff()
    image.load()  # verify() is not enough: damaged data shows only when it is decoded
    orientation = _orientation(image)  # only now: Pillow turns a TIFF as it loads, and a PNG may say it at its end
    pixels = np.asarray(to_rgb(image, data))
    return Decoded(pixels, pixels.shape[1], pixels.shape[0], orientation)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing of the pixels
        return 1
