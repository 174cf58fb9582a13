"""Which images go to train, valid and test: by content, so that growth moves nothing. Needs no torch.

No rule that looks at a set of images alone can keep every image, keep near-duplicates together and never move one:
of two near-duplicates that arrive one after the other, neither order may move the first, so each must go where it would
go alone, and these places may differ. What gives way here is keeping every image:

- An image's place is a function of its own coarse hash and the seed alone. Most near-duplicates share that hash.
- Where near-duplicates fall on two sides all the same, only those on the most protected side stay: test before valid
  before train. So no kept image has a near-duplicate on another side; a new image can take an old one of another
  side out, but never move it; and a test image always stays.

Chance does badly with few images, and may leave a split of theirs empty: a small class is split by count. Its images
are ranked by their places and cut at the shares, so that a new image moves only those at the cuts.

Exact counts (``exact=True``) are that for every class. They keep every image and every group of near-duplicates
together, and a new image may then move old ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from objrec.config.errors import UserError
from objrec.images.near_duplicates import is_featureless, near_pairs

SPLITS: Final = ("train", "valid", "test")  # from the least protected to the most
FEW: Final = 8  # images expected in a class's smallest split, under which chance may well leave it empty
Ints = npt.NDArray[np.int64]


class HashedImage(Protocol):
    """What a place depends on: see ``objrec.images.hashing`` for the hashes."""

    @property
    def class_name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def code(self) -> int: ...  # both difference hashes, rows << 64 | columns
    @property
    def coarse(self) -> int: ...


@dataclass(frozen=True)
class Assignment:
    """Where images go, by their index.

    Attributes:
        splits: ``train``, ``valid``, ``test``, or None for an image that is left out.
        sides: likewise, but for an image that is left out the side that it would be on.
        rivals: for an image that is left out, the index of a near-duplicate on a more protected side.
        groups: groups of more than one near-duplicates (connected by a chain of them), those left out included.
        by_count: classes that are too small for chance and were split by count; empty with ``exact``.
    """

    splits: list[str | None]
    sides: list[str]
    rivals: dict[int, int]
    groups: list[list[int]]
    by_count: list[str]


def assign_splits(
    images: Sequence[HashedImage], *, shares: Sequence[float], seed: int, distance: int | None, exact: bool = False
) -> Assignment:
    """Assign every image to a split.

    Args:
        images: without repeated bytes; their order does not matter.
        shares: of train, valid and test in each class; they sum to 1.
        distance: bits of 128 by which near-duplicates may differ; None: images are on their own.
        exact: exact counts in each class, which lets a new image move old ones.

    Raises:
        UserError: a class would have no image in one of the splits.
    """
    units = _Units(images, grouped=distance is not None)
    places = [_place(p, seed, grouped=distance is not None) for p in images]
    pairs = list(near_pairs(units.codes, distance)) if distance is not None else []
    for a, b in pairs:
        units.join(a, b)
    groups = units.groups()
    sizes = Counter(p.class_name for p in images)
    few = {name for name, n in sizes.items() if exact or n * min(shares) < FEW}
    assigned = _assign(images, places, shares, units, pairs, groups, few)
    if more := {name for name in _lacking(images, assigned.splits) if sizes[name] >= len(SPLITS)} - few:
        few |= more  # chance left a split of theirs empty
        assigned = _assign(images, places, shares, units, pairs, groups, few)
    _refuse_small_classes(images, assigned.splits)
    return replace(assigned, by_count=[] if exact else sorted(few))


def _assign(
    images: Sequence[HashedImage],
    places: Sequence[float],
    shares: Sequence[float],
    units: _Units,
    pairs: Sequence[tuple[Ints, Ints]],
    groups: list[list[int]],
    few: set[str],
) -> Assignment:
    """Assign by place, in the classes of ``few`` by count; near-duplicates on a less protected side are left out."""
    level = np.array([(v >= shares[0]) + (v >= shares[0] + shares[1]) for v in places], dtype=np.int64)
    chosen = [i for i, p in enumerate(images) if p.class_name in few]
    if chosen:
        within = {i: at for at, i in enumerate(chosen)}
        inside = [[within[i] for i in group if i in within] for group in groups]
        ranked = _exactly([images[i] for i in chosen], [places[i] for i in chosen], filter(None, inside), shares)
        level[chosen] = [SPLITS.index(split) for split in ranked]
    sides = [SPLITS[at] for at in level.tolist()]
    if len(chosen) == len(images):
        return Assignment([*sides], sides, {}, groups, [])
    highest = units.highest(level)
    beside = highest.copy()  # of a unit and those near it
    rival = np.arange(units.count)
    for a, b in pairs:
        for x, y in ((a, b), (b, a)):
            higher = highest[y] > beside[x]
            np.maximum.at(beside, x[higher], highest[y[higher]])
            best = higher & (highest[y] == beside[x])
            rival[x[best]] = y[best]
    out = level < beside[units.of]
    splits: list[str | None] = [None if gone else side for gone, side in zip(out.tolist(), sides, strict=True)]
    top = units.first_at(level, highest)
    rivals = {i: int(top[rival[units.of[i]]]) for i in np.flatnonzero(out).tolist()}
    return Assignment(splits, sides, rivals, groups, [])


class _Units:
    """Images with equal codes, taken together; one without features stands alone.

    Attributes:
        of: unit of each image.
        codes: of each unit.
    """

    def __init__(self, images: Sequence[HashedImage], *, grouped: bool) -> None:
        number: dict[int | str, int] = {}
        self.codes: list[int] = []
        self.of = np.empty(len(images), dtype=np.int64)
        for i, image in enumerate(images):
            key = image.code if grouped and not is_featureless(image.code) else image.sha256
            if key not in number:
                number[key] = len(self.codes)
                self.codes.append(image.code)
            self.of[i] = number[key]
        self.count = len(self.codes)
        self._parent = np.arange(self.count)

    def highest(self, level: Ints) -> Ints:
        """Return the highest level of each unit."""
        found = np.zeros(self.count, dtype=np.int64)
        np.maximum.at(found, self.of, level)
        return found

    def first_at(self, level: Ints, wanted: Ints) -> Ints:
        """Return for each unit an image of it that has the wanted level."""
        found = np.zeros(self.count, dtype=np.int64)
        fitting = np.flatnonzero(level == wanted[self.of])[::-1]
        found[self.of[fitting]] = fitting
        return found

    def join(self, a: npt.NDArray[np.intp], b: npt.NDArray[np.intp]) -> None:
        """Unite the groups of each pair."""
        apart = self._parent[a] != self._parent[b]
        for x, y in zip(a[apart].tolist(), b[apart].tolist(), strict=True):
            x, y = self._root(x), self._root(y)
            self._parent[max(x, y)] = min(x, y)

    def groups(self) -> list[list[int]]:
        """Return the images of each group of more than one, in their order."""
        members: dict[int, list[int]] = defaultdict(list)
        for i, unit in enumerate(self.of.tolist()):
            members[self._root(unit)].append(i)
        return [found for found in members.values() if len(found) > 1]

    def _root(self, unit: int) -> int:
        parent = self._parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = int(parent[unit])
        return unit


def _place(image: HashedImage, seed: int, *, grouped: bool) -> float:
    """Map an image to [0, 1), uniformly over hashes, always the same."""
    alone = not grouped or is_featureless(image.code)
    return _position(image.sha256 if alone else f"{image.coarse:06x}", seed)


def _position(text: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode()).digest()[:8], "big") / 2**64


def _exactly(
    images: Sequence[HashedImage], places: Sequence[float], groups: Iterable[Sequence[int]], shares: Sequence[float]
) -> list[str]:
    """Fill each class's exact counts: whole groups first, the largest before the others, then images on their own.

    Counts are exact unless there are too few images on their own to fill what the groups leave.
    """
    room = {name: _counts(n, shares) for name, n in Counter(p.class_name for p in images).items()}
    at: dict[int, int] = {}

    def put(members: Sequence[int], split: int) -> None:
        for i in members:
            at[i] = split
            room[images[i].class_name][split] -= 1

    def rank(i: int) -> tuple[float, str]:
        return places[i], images[i].sha256

    for members in sorted(groups, key=lambda g: (-len(g), min(map(rank, g)))):
        needs = Counter(images[i].class_name for i in members)
        first = min(members, key=rank)
        liked = (places[first] >= shares[0]) + (places[first] >= shares[0] + shares[1])
        spare = [min(room[name][s] - n for name, n in needs.items()) for s in range(len(SPLITS))]
        fitting = [s for s in range(len(SPLITS)) if spare[s] >= 0]
        put(members, liked if liked in fitting else max(fitting or range(len(SPLITS)), key=lambda s: spare[s]))
    for i in sorted((i for i in range(len(images)) if i not in at), key=rank):
        left = room[images[i].class_name]
        put([i], next((s for s in range(len(SPLITS)) if left[s] > 0), 0))
    return [SPLITS[at[i]] for i in range(len(images))]


def _counts(count: int, shares: Sequence[float]) -> list[int]:
    """Cut a class at exact counts; one of three images or more goes to each split."""
    train = round(count * shares[0])
    valid = min(round(count * shares[1]), count - train)
    counts = [train, valid, count - train - valid]
    if count >= len(counts):
        for poor in (2, 1, 0):
            if counts[poor] == 0:
                counts[counts.index(max(counts))] -= 1
                counts[poor] += 1
    return counts


def _lacking(images: Sequence[HashedImage], splits: Sequence[str | None]) -> dict[str, str]:
    """Return the classes with no image in some split, and its name."""
    found: dict[str, set[str | None]] = defaultdict(set)
    for image, split in zip(images, splits, strict=True):
        found[image.class_name].add(split)
    return {name: next(s for s in SPLITS if s not in has) for name, has in sorted(found.items()) if {*SPLITS} - has}


def _refuse_small_classes(images: Sequence[HashedImage], splits: Sequence[str | None]) -> None:
    kept = Counter(p.class_name for p, split in zip(images, splits, strict=True) if split is not None)
    poor = [
        f"class '{name}' has {kept[name]} distinct images"
        + (" that look alike" if kept[name] >= len(SPLITS) else "")
        + f" and none of them falls to {split}"
        for name, split in _lacking(images, splits).items()
    ]
    if poor:
        count = len({p.class_name for p in images})
        cure = "add images (ingest.num_images), or set preprocess.near_duplicate_bits=null where they only look alike"
        raise UserError([*poor[:5], f"{len(poor)} of {count} classes are too small to split: {cure}"])
