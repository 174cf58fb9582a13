"""Which images make a batch, as a function of seed and epoch alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Draw:
    """One batch.

    Attributes:
        indices: of its images.
        epoch: in which it is drawn.
        seed: of its augmentation; None where nothing is augmented.
    """

    indices: list[int]
    epoch: int = 0
    seed: int | None = None


def batch_bounds(count: int, size: int) -> list[int]:
    """Return where batches of ``size`` out of ``count`` begin, and ``count``: see ``BatchSampler`` for the last two."""
    bounds = [*range(0, count, size), count]
    if count > size > 1 and count % size == 1:
        bounds[-2:] = [count] if size == 2 else [count - (size + 1) // 2, count]
    return bounds


class BatchSampler(Sampler[Draw]):
    """Batches of a shuffled data set, a function of seed and epoch alone: a resumed epoch has the same batches.

    With several processes each takes every ``world``-th image of one common order; the last ones are repeated so
    that all have equally many batches. No batch is of one image where others have more, since batch norm needs two:
    the last two share theirs evenly (of batches of 2 and 1 they become one of 3).

    Args:
        targets: class of each image.
        balanced: every class fills the same share of an epoch. A small class is repeated, a large one is shown in
            part, other images each time; no image comes again before all others of its class have come.
    """

    def __init__(
        self,
        targets: npt.NDArray[np.int64],
        batch_size: int,
        *,
        seed: int,
        balanced: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.targets, self.batch_size, self.seed, self.balanced = targets, batch_size, seed, balanced
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0  # batches of the first pass that are left out: a resumed epoch has seen them

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(batch_bounds(math.ceil(len(self.targets) / self.world), self.batch_size)) - 1

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = self._balanced(random) if self.balanced else random.permutation(len(self.targets))
        share = np.resize(order, -(-len(order) // self.world) * self.world)[self.rank :: self.world]
        done, self.start = self.start, 0
        for i, (start, end) in enumerate(pairwise(batch_bounds(len(share), self.batch_size))):
            seed = int(random.integers(2**31)) + self.rank
            if i >= done:
                yield Draw(share[start:end].tolist(), self.epoch, seed)

    def _balanced(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        classes = random.permutation(np.unique(self.targets))  # those that come first take what does not divide evenly
        share, more = divmod(len(self.targets), len(classes))
        chosen = [
            np.resize(random.permutation(np.flatnonzero(self.targets == c)), share + (i < more))
            for i, c in enumerate(classes)
        ]
        return random.permutation(np.concatenate(chosen))


class InOrder(Sampler[Draw]):
    """Batches of all images in their order, for evaluation. With several processes each takes a contiguous share."""

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        share = -(-count // world)
        start = min(rank * share, count - share)  # the last one overlaps: all have equally many batches
        self.range, self.batch_size = range(start, start + share), batch_size
        self.own = rank * share  # those before it are another process's, repeated here

    def __len__(self) -> int:
        return math.ceil(len(self.range) / self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, len(self.range), self.batch_size):
            yield Draw(list(self.range[start : start + self.batch_size]))


def stratified_share(names: Sequence[str], targets: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.int64]:
    """Return which images make ``fraction`` of every class, sorted; at least one of each.

    They are chosen by the hash of their name, so that the same ones are chosen every time, whatever the seed, and a
    smaller fraction is part of a larger one.
    """
    if fraction == 1:
        return np.arange(len(targets))
    keys = np.array([int.from_bytes(hashlib.sha256(n.encode(errors="surrogateescape")).digest()[:8]) for n in names])
    ranked = np.lexsort((keys, targets))
    _, starts, counts = np.unique(targets[ranked], return_index=True, return_counts=True)
    kept = np.ceil(counts * fraction - 1e-9).astype(np.int64).clip(min=1)
    return np.sort(np.concatenate([ranked[s : s + k] for s, k in zip(starts, kept, strict=True)]))
