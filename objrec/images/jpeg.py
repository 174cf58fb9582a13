"""JPEG files, decoded by libjpeg-turbo no finer than needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive; all with Huffman codes
TABLES: Final = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # DHT, DQT, DRI, COM, APP0 to APP15
SCAN: Final = 0xDA
SAMPLINGS: Final = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)})  # of brightness to colour
SEGMENTS: Final = 1000  # of metadata in a plain file; cameras and editors write some ten
TURNED: Final = (b"Exif\0\0", b"tiff:Orientation")  # where a file may say which way up it is


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG as of ``coded_size`` that says nothing of its orientation.

    None for anything else: a reader of all formats and their metadata must look. That takes ten times as long, and
    holds the interpreter lock meanwhile.
    """
    header = _header(data)
    if header is None or any(data.find(mark, 0, header[2]) >= 0 for mark in TURNED):
        return None
    return header[:2]


def coded_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG that ``decode_jpeg`` was made for; None for anything else.

    That is one frame with Huffman codes, 8 bits, and grey or three colours in a usual sampling. Reduced decoding of
    others (lossless, arithmetic, 12 bits, four colours) was seen to corrupt memory: they never reach it.
    """
    header = _header(data)
    return None if header is None else header[:2]


def _header(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and where the first scan begins, by the rules of ``coded_size``; None for anything else."""
    size = None
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    for _ in range(SEGMENTS):
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SCAN:
            return None if size is None else (*size, at)
        if marker in FRAMES:
            if size is not None or (size := _frame_size(data[at + 4 : at + 2 + length])) is None:
                return None
        elif marker not in TABLES or length < 2:
            return None
        at += 2 + length
    return None


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Return width and height from the body of a frame header; None where it is unusual in any way."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    samplings = [(b >> 4, b & 15) for b in frame[7::3]]
    if samplings[0] not in SAMPLINGS or any(s != (1, 1) for s in samplings[1:]):
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return (width, height) if width and height else None  # a height of 0 comes later in the file


def decode_jpeg(
    data: bytes, *, size: tuple[int, int], at_least: int | None
) -> tuple[npt.NDArray[np.uint8], int] | None:
    """Decode a JPEG that has a ``coded_size`` at the smallest number of eighths that suffices.

    The inverse cosine transform computes fewer pixels then; every coded bit is still read, so damage shows as it would
    at full size. At eight eighths the pixels are those of Pillow, which uses the same library.

    Args:
        size: width and height as of ``coded_size``.
        at_least: pixels of the shorter side that are needed; None: all.

    Returns:
        RGB of shape (H, W, 3), each side rounded up, and the number of eighths. None where the file is not entirely
        well-formed: a more patient decoder may try.
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
