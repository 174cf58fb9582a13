"""Is it an image, which one, and how large?"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

from objrec.images.decode import ImageError, decode_stored, open_checked
from objrec.images.formats import EXTENSIONS
from objrec.images.hashing import HASHED, hash_image


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminedImage:
    """What is known of bytes that decoded.

    Attributes:
        sha256: of the bytes, in hexadecimal.
        size: in bytes.
        width: in pixels, as stored.
        extension: without the dot, by content.
        rows: 64-bit difference hash along the rows: is a cell brighter than its left neighbour?
        columns: likewise along the columns.
    """

    sha256: str
    size: int
    width: int
    height: int
    extension: str
    rows: int
    columns: int


def examine(data: bytes, *, max_pixels: int, min_size: int) -> ExaminedImage:
    """Decode ``data`` to the end and describe it.

    A JPEG is read with a reduced inverse transform: every coded bit is still read, so damage shows as at full size.

    Raises:
        ImageError: as ``objrec.images.decode``.
    """
    if not data:
        raise ImageError("corrupt", "empty")
    image = decode_stored(data, max_pixels=max_pixels, min_size=min_size, target=HASHED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_checked(data, max_pixels=max_pixels) as header:
            width, height, kind = *header.size, header.format
    hashes = hash_image(image)
    return ExaminedImage(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        width=width,
        height=height,
        extension=EXTENSIONS[kind or "JPEG"],
        rows=hashes.rows,
        columns=hashes.columns,
    )
