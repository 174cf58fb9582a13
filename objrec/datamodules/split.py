"""Which pictures go to train, valid and test: by content, so that growth moves nothing. Needs no torch."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from objrec.config.errors import UserError

SPLITS: Final = ("train", "valid", "test")


def assign_splits(
    groups: Mapping[str, Sequence[str]], *, shares: Sequence[float], seed: int, exact: bool = False
) -> dict[str, str]:
    """Assign every group of near-duplicates to a split.

    Args:
        groups: class name -> names of its groups. A name stands for what the pictures of the group have in common,
            so that a new picture of a group lands where the others are.
        shares: of train, valid and test; they sum to 1.
        exact: cut each class at exact counts, which lets a new group move an old one across a border.

    Returns:
        group -> ``train``, ``valid`` or ``test``.

    Raises:
        UserError: a class would have no picture in one of the splits.
    """
    assigned: dict[str, str] = {}
    poor: list[str] = []
    for name in sorted(groups):
        ranked = sorted((_position(group, seed), group) for group in set(groups[name]))
        borders = _exact_borders(len(ranked), shares) if exact else None
        members: dict[str, int] = defaultdict(int)
        for rank, (position, group) in enumerate(ranked):
            if borders is not None:
                split = SPLITS[sum(rank >= border for border in borders)]
            else:
                split = SPLITS[(position >= shares[0]) + (position >= shares[0] + shares[1])]
            assigned[group] = split
            members[split] += 1
        if missing := [s for s in SPLITS if not members[s]]:
            poor.append(f"class '{name}' has {len(ranked)} distinct pictures and none of them falls to {missing[0]}")
    if poor:
        cure = "add pictures (ingest.num_images)" + ("" if exact else ", or set preprocess.exact_split=true")
        raise UserError([*poor[:5], f"{len(poor)} of {len(groups)} classes are too small to split: {cure}"])
    return assigned


def _position(group: str, seed: int) -> float:
    """Map a group to [0, 1), uniformly and for ever the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{group}".encode()).digest()[:8], "big") / 2**64


def _exact_borders(count: int, shares: Sequence[float]) -> tuple[int, int]:
    train = round(count * shares[0])
    return train, train + round(count * shares[1])
