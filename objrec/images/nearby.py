"""Near-duplicates by perceptual hash, found without comparing all pairs."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

BANDS: Final = 7
BITS: Final = 19  # of the longest band
# Bit 8 r + c of the hash by rows, and of that by columns, belongs to the band of its diagonal: neighbours on the
# picture say much the same, so a band whose bits lie far from each other tells more strangers apart.
SPREAD: Final = [
    [64 * half + 8 * r + c for half in (0, 1) for r in range(8) for c in range(8) if (3 * r + c + 3 * half) % 7 == band]
    for band in range(BANDS)
]
FEATURELESS: Final = 10  # set or unset bits below which a half of the hash says too little to compare by
T = TypeVar("T")
Indices = npt.NDArray[np.intp]


class Hashed(Protocol):
    """A picture's 64-bit difference hashes along rows and columns."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


class NearbyIndex(Generic[T]):
    """Pictures whose 128-bit hashes differ in at most ``distance`` bits.

    The hash is two 64-bit difference hashes, by rows and by columns. By the pigeonhole principle two hashes that differ
    in fewer bits than there are bands agree in at least one band, so only the pictures that share one are compared
    (M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", 2012). A band has 18 or 19 bits, so
    few strangers share one, and a caller that inserts no near-duplicates keeps every bucket small.

    Args:
        distance: below the number of bands.
    """

    def __init__(self, distance: int) -> None:
        assert 0 <= distance < BANDS
        self._distance = distance
        # Flat arrays instead of dicts of lists: nothing for the garbage collector to walk through, and a look-up
        # touches few cache lines. Item i is at place i, 0 is none; a bucket is a chain of places through ``_next``.
        self._heads = array("i", bytes(4 * BANDS << BITS))
        self._next = [array("i", [0]) for _ in range(BANDS)]
        self._codes = [0]
        self._items: list[T | None] = [None]

    def find(self, picture: Hashed) -> Iterator[T]:
        """Yield each inserted item that is near, once."""
        if _featureless(picture):
            return
        code = _code(picture)
        near: dict[int, None] = {}
        for key, chain in zip(_bands(code), self._next, strict=True):
            place = self._heads[key]
            while place:
                if (code ^ self._codes[place]).bit_count() <= self._distance:
                    near[place] = None
                place = chain[place]
        yield from (self._items[place] for place in near)  # type: ignore[misc]  # only place 0 holds None

    def insert(self, picture: Hashed, item: T) -> None:
        if _featureless(picture):
            return
        code, place = _code(picture), len(self._codes)
        self._codes.append(code)
        self._items.append(item)
        for key, chain in zip(_bands(code), self._next, strict=True):
            chain.append(self._heads[key])
            self._heads[key] = place


def _code(picture: Hashed) -> int:
    return picture.rows << 64 | picture.columns


@cache
def _band_table() -> list[list[int]]:
    """Return for each byte of a code and each of its values the bits that it adds to the bands, ``BITS`` for each."""
    places = {bit: band * BITS + i for band, bits in enumerate(SPREAD) for i, bit in enumerate(bits)}
    return [
        [sum(1 << places[8 * byte + i] for i in range(8) if value << i & 128) for value in range(256)]
        for byte in range(16)
    ]


def _bands(code: int) -> list[int]:
    together = 0
    for byte, adds in zip(code.to_bytes(16, "big"), _band_table(), strict=True):
        together |= adds[byte]
    return [band << BITS | together >> band * BITS & (1 << BITS) - 1 for band in range(BANDS)]


def _featureless(picture: Hashed) -> bool:
    """Clear skies and logos on white: most cells equal their neighbours, so unlike pictures have like hashes."""
    return is_featureless(_code(picture))


def near_pairs(codes: Sequence[int], distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs of near-duplicates among many pictures at once, as arrays of indices.

    Finds what ``NearbyIndex`` finds, by sorting each band instead of keeping buckets, in a tenth of its memory. A pair
    may come more than once. Time is n log n as long as few strangers agree in a band, and grows with the number
    of pairs: give equal codes once.

    Args:
        codes: 128 bits each, ``rows << 64 | columns``.
        distance: below the number of bands.
    """
    assert 0 <= distance < BANDS
    raw = np.frombuffer(b"".join(code.to_bytes(16, "big") for code in codes), dtype=np.uint8).reshape(-1, 16)
    words = raw.view(">u8").astype(np.uint64)
    counts = np.bitwise_count(words)
    used = np.flatnonzero(((counts >= FEATURELESS) & (counts <= 64 - FEATURELESS)).all(axis=1))
    for band in SPREAD:
        value = np.zeros(len(used), dtype=np.int64)
        for bit in band:
            value = value << 1 | (raw[used, bit // 8] >> (7 - bit % 8)) & 1
        order = np.argsort(value, kind="stable")
        value, items = value[order], used[order]
        here, step = np.arange(len(items)), 0
        while len(here):  # each with the next in its bucket, with the one after that, ...
            step += 1
            here = here[here + step < len(items)]
            here = here[value[here] == value[here + step]]
            a, b = items[here], items[here + step]
            near = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= distance
            if near.any():
                yield a[near], b[near]


def is_featureless(code: int) -> bool:
    """Whether a picture shows too little to tell what it resembles; ``code`` as for ``near_pairs``."""
    return any(not FEATURELESS <= h.bit_count() <= 64 - FEATURELESS for h in (code >> 64, code & (1 << 64) - 1))
