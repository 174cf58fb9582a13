"""One file: read, check, hash, crop, encode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from objrec.images.decode import ImageError, decode_stored
from objrec.images.hashing import HASHED, hash_image
from objrec.images.jpeg import encode_jpeg
from objrec.images.preprocessing import crop_square
from objrec.system.reading import read_file

FINE_BELOW: Final = 224  # pixels
QUALITY, FINE_QUALITY = 95, 98  # the encoder alone: 40 dB at 224 px, and at 48 px 38 and 44 dB


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """What is known of a file.

    Attributes:
        sha256: of the file, in hexadecimal.
        code: its two 64-bit difference hashes, rows << 64 | columns.
        coarse: its 24-bit hash.
        crop_sha256: of the encoded crop.
        problem: why there is no crop; then the other attributes but the first mean nothing.
    """

    sha256: str
    code: int = 0
    coarse: int = 0
    crop_sha256: str = ""
    problem: str = ""


def crop_file(path: str, target: str, *, size: int, quality: int | None, max_pixels: int) -> Crop:
    """Crop the image in ``path`` to a square JPEG in ``target``. Never raises for what the file holds.

    Args:
        quality: of the JPEG; None: what the size needs. The 8 x 8 blocks of a small crop hold more detail each.

    Raises:
        UserError: the file cannot be read, which says nothing about the image.
    """
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode_stored(data, max_pixels=max_pixels, target=max(size, HASHED))
    except ImageError as error:
        return Crop(sha256=sha256, problem=str(error))
    if quality is None:
        quality = FINE_QUALITY if size < FINE_BELOW else QUALITY
    encoded = encode_jpeg(crop_square(image, size), quality=quality)
    Path(target).write_bytes(encoded)
    hashes = hash_image(image)
    return Crop(
        sha256=sha256,
        code=hashes.code,
        coarse=hashes.coarse,
        crop_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def crop_numbered(
    index: int, name: str, *, raw: str, scratch: str, size: int, quality: int | None, max_pixels: int
) -> Crop:
    """``crop_file`` of a file of the folder ``raw`` into ``scratch``, under the number of the file."""
    return crop_file(f"{raw}/{name}", f"{scratch}/{index}.jpg", size=size, quality=quality, max_pixels=max_pixels)
