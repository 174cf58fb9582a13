"""JPEG files, decoded by libjpeg-turbo no finer than needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


COLOURS: Final = ("YCbCr", "RGB", "Gray")
TURNED: Final = (b"Exif\0\0", b"tiff:Orientation")  # where a file may say which way up it is


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG in colour or grey that says nothing of its orientation, from its header.

    None for anything else: whoever knows all formats and their metadata must look. That takes ten times as long, and
    holds the interpreter lock meanwhile.
    """
    import simplejpeg

    if data[:2] != b"\xff\xd8" or any(mark in data for mark in TURNED):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in COLOURS else None


def decode_jpeg(
    data: bytes, *, size: tuple[int, int], at_least: int | None
) -> tuple[npt.NDArray[np.uint8], int] | None:
    """Decode a colour JPEG at the smallest number of eighths that suffices.

    The inverse cosine transform computes fewer pixels then; every coded bit is still read, so damage shows as it would
    at full size. At eight eighths the pixels are those of Pillow, which uses the same library.

    Args:
        size: width and height that another reader of the header found. A file whose parts disagree is not decoded.
        at_least: pixels of the shorter side that are needed; None: all.

    Returns:
        RGB of shape (H, W, 3), each side rounded up, and the number of eighths. None where the file is not entirely
        well-formed, or not in three colours: whoever is more patient may try.
    """
    import simplejpeg

    width, height = size
    eighths = 8 if at_least is None else next((m for m in range(1, 8) if min(size) * m >= 8 * at_least), 8)
    shape = (-(-height * eighths // 8), -(-width * eighths // 8), 3)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=shape[0], min_width=shape[1], strict=True
        )
    except ValueError:
        return None
    return (pixels, eighths) if pixels.shape == shape else None


def encode_jpeg(pixels: npt.NDArray[np.uint8], *, quality: int) -> bytes:
    """Encode RGB of shape (H, W, 3) with full chroma: at small sizes 4:2:0 would halve an already small colour."""
    import simplejpeg

    data: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="444")
    return data
