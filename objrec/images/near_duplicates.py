"""Near-duplicates by perceptual hash, found without comparing all pairs: the one definition for every step.

Two images are near-duplicates when their 128-bit difference hashes (``objrec.images.hashing``) differ in at most
``images.near_duplicate_bits`` bits. What that finds, and what it takes for one by mistake, is measured in
``docs/preprocess.md``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

BANDS: Final = 8
BITS: Final = 16  # of a band
# Bit 8 r + c of the hash by rows, and of that by columns, belongs to the band of its diagonal: neighbours in the
# image say much the same, so a band whose bits are far from each other tells more images apart.
SPREAD: Final = [
    [64 * half + 8 * r + c for half in (0, 1) for r in range(8) for c in range(8) if (3 * r + c + 3 * half) % 8 == band]
    for band in range(BANDS)
]
MAX_DISTANCE: Final = 2 * BANDS - 1
FLIPS: Final = [0, *(1 << bit for bit in range(BITS))]
FEATURELESS: Final = 10  # set or unset bits below which a half of the hash says too little to compare by
CHUNK: Final = 1 << 21  # pairs compared at once
T = TypeVar("T")
Indices = npt.NDArray[np.intp]


class Hashed(Protocol):
    """An image's 64-bit difference hashes along rows and columns."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...


class NearbyIndex(Generic[T]):
    """Images whose 128-bit hashes differ in at most ``distance`` bits.

    By the pigeonhole principle two hashes that differ in at most ``2 * BANDS - 1`` bits differ in at most one bit of
    some band, so only the images of 17 buckets of each band are compared (M. Norouzi et al., "Fast Search in Hamming
    Space with Multi-Index Hashing", 2012).

    Args:
        distance: at most ``MAX_DISTANCE``.
    """

    def __init__(self, distance: int) -> None:
        assert 0 <= distance <= MAX_DISTANCE
        self._distance = distance
        self._flips = FLIPS if distance >= BANDS else FLIPS[:1]
        # Flat arrays instead of dicts of lists: nothing for the garbage collector to walk through, and a look-up
        # touches few cache lines. Item i is at place i, 0 is none; a bucket is a chain of places through ``_next``.
        self._heads = array("i", bytes(4 * BANDS << BITS))
        self._next = [array("i", [0]) for _ in range(BANDS)]
        self._codes = [0]
        self._items: list[T | None] = [None]

    def find(self, image: Hashed) -> Iterator[T]:
        """Yield each inserted item that is near, once, in the order of insertion."""
        return (item for item, _ in self.near(_code(image)))

    def near(self, code: int) -> Iterator[tuple[T, int]]:
        """Yield each inserted item that is near, with the number of bits; ``code`` as for ``near_pairs``."""
        if is_featureless(code):
            return
        near: dict[int, int] = {}
        for band, chain in zip(_bands(code), self._next, strict=True):
            for flip in self._flips:
                place = self._heads[band ^ flip]
                while place:
                    if (bits := (code ^ self._codes[place]).bit_count()) <= self._distance:
                        near[place] = bits
                    place = chain[place]
        for place in sorted(near):
            yield self._items[place], near[place]  # type: ignore[misc]  # only place 0 holds None

    def insert(self, image: Hashed, item: T) -> None:
        self.add(_code(image), item)

    def add(self, code: int, item: T) -> None:
        """Insert by code, as ``insert``."""
        if is_featureless(code):
            return
        place = len(self._codes)
        self._codes.append(code)
        self._items.append(item)
        for key, chain in zip(_bands(code), self._next, strict=True):
            chain.append(self._heads[key])
            self._heads[key] = place


def _code(image: Hashed) -> int:
    return image.rows << 64 | image.columns


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


def near_pairs(codes: Sequence[int], distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs of near-duplicates among many images at once, as arrays of indices.

    Finds what ``NearbyIndex`` finds, by sorting each band instead of keeping buckets, in a tenth of its memory. A pair
    may come more than once. Time grows with the number of pairs that agree in all but one bit of a band: give equal
    codes once.

    Args:
        codes: 128 bits each, ``rows << 64 | columns``.
        distance: at most ``MAX_DISTANCE``.
    """
    assert 0 <= distance <= MAX_DISTANCE
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
        starts = np.searchsorted(value, np.arange((1 << BITS) + 1))
        for flip in FLIPS if distance >= BANDS else FLIPS[:1]:
            here = np.flatnonzero(value & flip == 0)
            first = starts[value[here] | flip] if flip else here + 1  # in its own bucket only those after it
            for a, b in _products(here, first, starts[(value[here] | flip) + 1]):
                a, b = items[a], items[b]
                near = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= distance
                if near.any():
                    yield a[near], b[near]


def _products(here: Indices, first: Indices, last: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield each of ``here`` with each place from its ``first`` up to its ``last``, some ``CHUNK`` pairs at once."""
    counts = last - first
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(CHUNK, int(ends[-1]) if len(ends) else 0, CHUNK))
    for part in np.split(np.arange(len(here)), np.unique(cuts)):
        each = counts[part]
        if total := int(each.sum()):
            offsets = np.arange(total) - np.repeat(np.cumsum(each) - each, each)
            yield np.repeat(here[part], each), np.repeat(first[part], each) + offsets


def is_featureless(code: int) -> bool:
    """Whether an image shows too little to tell what it resembles; ``code`` as for ``near_pairs``."""
    return any(not FEATURELESS <= h.bit_count() <= 64 - FEATURELESS for h in (code >> 64, code & (1 << 64) - 1))
