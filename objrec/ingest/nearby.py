"""Near-duplicates by perceptual hash, found without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import numpy as np

from objrec.ingest.examine import Picture

BANDS: Final = 7
BITS: Final = 18  # of a band; of 128 bits two are left over
SPREAD: Final = (
    np.random.default_rng(0).permutation(128)[: BANDS * BITS].reshape(BANDS, BITS)
)  # neighbouring bits say much the same
POWERS: Final = 1 << np.arange(BITS)
FEATURELESS: Final = 10  # set or unset bits below which a half of the hash says too little to compare by
T = TypeVar("T")


class NearbyIndex(Generic[T]):
    """Pictures whose 128-bit hashes differ in at most ``distance`` bits.

    The hash is two 64-bit difference hashes, by rows and by columns. By the pigeonhole principle two hashes that differ
    in fewer bits than there are bands agree in at least one band, so only the pictures that share one are compared
    (M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", 2012). With 18-bit bands a bucket holds
    n / 262144 strangers, and a caller that inserts no near-duplicates keeps every bucket small.

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
            entry = code, item
            for key in _bands(code):
                self._buckets.setdefault(key, []).append(entry)


def _code(picture: Picture) -> int:
    return picture.rows << 64 | picture.columns


def _bands(code: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(code.to_bytes(16, "big"), dtype=np.uint8))
    values: list[int] = (bits[SPREAD] @ POWERS).tolist()
    return [value << 4 | band for band, value in enumerate(values)]


def _featureless(picture: Picture) -> bool:
    """Clear skies and logos on white: most cells equal their neighbours, so unlike pictures have like hashes."""
    return any(not FEATURELESS <= h.bit_count() <= 64 - FEATURELESS for h in (picture.rows, picture.columns))
