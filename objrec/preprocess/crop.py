"""One file: read, check, hash, crop, encode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from objrec.images.budget import MemoryShare
from objrec.images.decode import ImageError, decode_stored
from objrec.images.hashing import HASHED, hash_image
from objrec.images.jpeg import encode_jpeg
from objrec.images.preprocessing import crop_square
from objrec.system.pool import Alone
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


def crop_file(
    path: str, target: str, alone: Alone, *, size: int, quality: int | None, max_pixels: int, share: MemoryShare
) -> Crop:
    """Crop the image in ``path`` to a square JPEG in ``target``. Never raises for what the file holds.

    Args:
        alone: entered for an image whose decoding takes more memory than ``share`` has for everyone.
        quality: of the JPEG; None: what the size needs. The 8 x 8 blocks of a small crop hold more detail each.

    Raises:
        UserError: the file cannot be read, which says nothing about the image.
    """
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    finest = max(size, HASHED)
    try:
        with share.hold(data, alone, max_pixels=max_pixels, target=finest):
            image = decode_stored(data, max_pixels=max_pixels, target=finest)
            crop, hashes = crop_square(image, size), hash_image(image)
            del image
    except ImageError as error:
        return Crop(sha256=sha256, problem=str(error))
    if quality is None:
        quality = FINE_QUALITY if size < FINE_BELOW else QUALITY
    encoded = encode_jpeg(crop, quality=quality)
    Path(target).write_bytes(encoded)
    return Crop(
        sha256=sha256,
        code=hashes.code,
        coarse=hashes.coarse,
        crop_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def crop_numbered(job: tuple[int, str], alone: Alone, *, raw: str, scratch: str, **options: Any) -> Crop:
    """``crop_file`` of a file of the folder ``raw`` into ``scratch``; ``job``: the file's number and its name."""
    index, name = job
    return crop_file(f"{raw}/{name}", f"{scratch}/{index}.jpg", alone, **options)
