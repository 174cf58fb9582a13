"""JPEG files, decoded by libjpeg-turbo no finer than needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


COLOURS: Final = ("YCbCr", "RGB", "Gray")
SCAN: Final = b"\xda"
SEGMENTS: Final = 1000  # of metadata in a plain file; cameras and editors write some ten
TURNED: Final = (b"Exif\0\0", b"tiff:Orientation")  # where a file may say which way up it is


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG in colour or grey that says nothing of its orientation, from its header.

    None for anything else: whoever knows all formats and their metadata must look. That takes ten times as long, and
    holds the interpreter lock meanwhile.
    """
    end = _metadata_end(data)
    return coded_size(data) if end is not None and all(data.find(mark, 0, end) < 0 for mark in TURNED) else None


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG in colour or grey as its decoder reads them; None for anything else."""
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in COLOURS else None


def _metadata_end(data: bytes) -> int | None:
    """Return where the coded picture begins; None where the segments before it do not follow one another."""
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    for _ in range(SEGMENTS):
        if data[at : at + 1] != b"\xff":
            return None
        if data[at + 1 : at + 2] == SCAN:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def decode_jpeg(
    data: bytes, *, size: tuple[int, int], at_least: int | None
) -> tuple[npt.NDArray[np.uint8], int] | None:
    """Decode a colour JPEG at the smallest number of eighths that suffices.

    The inverse cosine transform computes fewer pixels then; every coded bit is still read, so damage shows as it would
    at full size. At eight eighths the pixels are those of Pillow, which uses the same library.

    Args:
        size: width and height as of ``coded_size``.
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
