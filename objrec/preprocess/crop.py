"""One file: read, check, hash, crop, encode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from objrec.images.decode import ImageError, decode_stored
from objrec.images.geometry import crop_square
from objrec.images.hashing import HASHED, hash_picture
from objrec.images.jpeg import encode_jpeg
from objrec.system.reading import read_file


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


def crop_file(path: str, target: str, *, size: int, quality: int, max_pixels: int) -> Crop:
    """Crop the picture in ``path`` to a square JPEG in ``target``. Never raises for what the file holds.

    Raises:
        UserError: the file cannot be read, which says nothing about the image.
    """
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        picture = decode_stored(data, max_pixels=max_pixels, target=max(size, HASHED))
    except ImageError as error:
        return Crop(sha256=sha256, problem=str(error))
    encoded = encode_jpeg(crop_square(picture, size), quality=quality)
    Path(target).write_bytes(encoded)
    hashes = hash_picture(picture)
    return Crop(
        sha256=sha256,
        code=hashes.code,
        coarse=hashes.coarse,
        crop_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def crop_numbered(index: int, name: str, *, raw: str, scratch: str, size: int, quality: int, max_pixels: int) -> Crop:
    """``crop_file`` of a file of the folder ``raw`` into ``scratch``, under the number of the file."""
    return crop_file(f"{raw}/{name}", f"{scratch}/{index}.jpg", size=size, quality=quality, max_pixels=max_pixels)
