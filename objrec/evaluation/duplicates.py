"""Test pictures that the model may have seen in training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from objrec.images.decode import ImageError, decode
from objrec.images.folders import list_split
from objrec.images.hashing import difference_hash

MAX_BITS: Final = 12  # of 64: a candidate pair, to be confirmed on the pixels
MAX_DIFFERENCE: Final = 6.0  # mean absolute difference of the thumbnails' channels, of 255: scaled or recompressed
THUMB: Final = 16  # pixels a side


class _Print(NamedTuple):
    bits: int
    thumb: npt.NDArray[np.uint8]


def near_duplicates(test: Sequence[Path], train_dir: Path, *, max_pixels: int) -> list[dict[str, Any]]:
    """Return pairs of a test picture and a training picture that show the same, exact or scaled or recompressed.

    Each pair is ``test`` (index), ``train`` (path), ``difference`` (0 to ``MAX_DIFFERENCE``), most alike first; of a
    test picture only the closest is named. Candidates differ in at most ``MAX_BITS`` of their difference hashes;
    thumbnails of ``THUMB`` pixels a side confirm them.
    """
    train = [path for path, _ in list_split(train_dir).files]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        ours = list(pool.map(lambda p: _fingerprint(p, max_pixels), test))
        theirs = list(pool.map(lambda p: _fingerprint(p, max_pixels), train))
    known = [(path, f) for path, f in zip(train, theirs, strict=True) if f is not None]
    if not known:
        return []
    bits = np.array([f.bits for _, f in known], dtype=np.uint64)
    found = []
    for index, mine in enumerate(ours):
        if mine is None:
            continue
        near = np.flatnonzero(np.bitwise_count(bits ^ np.uint64(mine.bits)) <= MAX_BITS)
        if not len(near):
            continue
        thumbs = np.stack([known[i][1].thumb for i in near]).astype(np.int16)
        differences = np.abs(thumbs - mine.thumb).mean(axis=(1, 2, 3))
        best = int(differences.argmin())
        if differences[best] <= MAX_DIFFERENCE:
            path = known[near[best]][0]
            name = f"{path.parent.name}/{path.name}"
            found.append({"test": index, "train": name, "difference": float(differences[best])})
    return sorted(found, key=lambda pair: (pair["difference"], pair["test"]))


def _fingerprint(path: Path, max_pixels: int) -> _Print | None:
    try:
        image = decode(path, max_pixels=max_pixels, target=4 * THUMB)
    except ImageError:
        return None
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX)
    return _Print(difference_hash(image), np.asarray(thumb))
