"""Near-duplicates by perceptual hash, found without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import numpy as np

from objrec.ingest.examine import Picture

BANDS: Final = 8
BITS: Final = 16  # of a band
SPREAD: Final = np.random.default_rng(0).permutation(BANDS * BITS)  # neighbouring bits say much the same
FEATURELESS: Final = 10  # set or unset bits below which a half of the hash says too little to compare by
T = TypeVar("T")


class NearbyIndex(Generic[T]):
    """Pictures whose 128-bit hashes differ in at most ``distance`` bits.

    The hash is two 64-bit difference hashes, by rows and by columns. By the pigeonhole principle two hashes that differ
    in fewer bits than there are bands agree in at least one band, so only the pictures that share one are compared
    (M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", 2012). With 16-bit bands a bucket holds
    n / 65536 strangers, and a caller that inserts no near-duplicates keeps every bucket small.

    Args:
        distance: below the number of bands.
    """

    def __init__(self, distance: int) -> None:
        assert 0 <= distance < BANDS
        self._distance = distance
        self._buckets: dict[int, list[tuple[int, T]]] = {}

    def find(self, picture: Picture) -> Iterator[T]:
        """Yield each inserted item that is near, once."""
        if _featureless(picture):
            return
        code = _code(picture)
        seen: set[int] = set()
        for key in _bands(code):
            for other, item in self._buckets.get(key, ()):
                if (code ^ other).bit_count() <= self._distance and id(item) not in seen:
                    seen.add(id(item))
                    yield item

    def insert(self, picture: Picture, item: T) -> None:
        if not _featureless(picture):
            code = _code(picture)
            for key in _bands(code):
                self._buckets.setdefault(key, []).append((code, item))


def _code(picture: Picture) -> int:
    return picture.rows << 64 | picture.columns


def _bands(code: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(code.to_bytes(BANDS * BITS // 8, "big"), dtype=np.uint8))
    values: list[int] = np.packbits(bits[SPREAD]).view(np.uint16).tolist()
    return [value << 4 | band for band, value in enumerate(values)]


def _featureless(picture: Picture) -> bool:
    """Clear skies and logos on white: most cells equal their neighbours, so unlike pictures have like hashes."""
    return any(not FEATURELESS <= h.bit_count() <= 64 - FEATURELESS for h in (picture.rows, picture.columns))
