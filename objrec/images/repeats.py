"""Test images that the model may have seen in training."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from objrec.images.decode import ImageError, decode_stored
from objrec.images.hashing import HASHED, hash_image
from objrec.images.image_folder import list_classes
from objrec.images.near_duplicates import NearbyIndex
from objrec.system.cores import available_cores
from objrec.system.reading import read_file


class _Print(NamedTuple):
    sha256: bytes
    code: int | None  # None: no image


def near_duplicates(
    test: Sequence[Path], train_dir: Path, *, max_pixels: int, distance: int | None
) -> list[dict[str, Any]]:
    """Return pairs of a test image and a training image that show the same, by the rule of ``near_duplicates``.

    Each pair is ``test`` (index), ``train`` (name below ``train_dir``), ``bits`` (of 128 that their hashes differ in),
    most alike first; of a test image only the closest is named. The same bytes are 0 bits apart.

    Args:
        distance: bits by which near-duplicates may differ; None: only the same bytes count.
    """
    listing = list_classes(train_dir)
    with ThreadPoolExecutor(available_cores()) as pool:
        ours = list(pool.map(lambda p: _fingerprint(p, max_pixels), test))
        theirs = list(pool.map(lambda p: _fingerprint(p, max_pixels), (path for path, _ in listing.files)))
    same = {known.sha256: place for place, known in reversed(list(enumerate(theirs)))}
    index: NearbyIndex[int] = NearbyIndex(distance or 0)
    for code, place in {p.code: i for i, p in reversed(list(enumerate(theirs))) if p.code is not None}.items():
        index.add(code, place)
    found = []
    for i, mine in enumerate(ours):
        near = [(0, same[mine.sha256])] if mine.sha256 in same else []
        if not near and distance is not None and mine.code is not None:
            near = [(bits, place) for place, bits in index.near(mine.code)]
        if near:
            bits, place = min(near)
            found.append({"test": i, "train": listing.names[place], "bits": bits})
    return sorted(found, key=lambda pair: (pair["bits"], pair["test"]))


def _fingerprint(path: Path, max_pixels: int) -> _Print:
    data = read_file(path)
    sha256 = hashlib.sha256(data).digest()
    try:
        return _Print(sha256, hash_image(decode_stored(data, max_pixels=max_pixels, target=HASHED)).code)
    except ImageError:
        return _Print(sha256, None)
