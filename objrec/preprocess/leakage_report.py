"""A page that shows what repeats itself in a dataset, and on which side of the split it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from objrec.preprocess.selection import CroppedImage, Selection
from objrec.preprocess.split import Assignment
from objrec.reports.html import thumbnail, write_page

TEMPLATE: Final = Path(__file__).with_name("leakage_report.html.j2")
SHOWN: Final = 24  # sets of images in each section
IN_A_SET: Final = 8
Member = tuple[CroppedImage, str | None]  # an image and its split, None where it was left out


def write_report(path: Path, selection: Selection, assigned: Assignment, counts: Mapping[str, int]) -> None:
    """Write the page. It holds its images, taken from the crops, and fetches nothing."""
    groups: list[list[Member]] = [[(selection.kept[i], assigned.splits[i]) for i in g] for g in assigned.groups]
    split_of = dict(zip((p.name for p in selection.kept), assigned.splits, strict=True))
    repeats: dict[str, list[Member]] = {}
    for kept, other in selection.repeats[: 4 * SHOWN]:
        repeats.setdefault(kept.name, [(kept, split_of[kept.name])]).append((other, None))
    write_page(
        path,
        TEMPLATE,
        kept=len(selection.kept) - len(assigned.rivals),
        counts=counts,
        unusable=sorted(Counter(row["reason"].split(":")[0] for row in selection.unusable).items()),
        across=[g for g in groups if len({p.class_name for p, _ in g}) > 1],
        within=[g for g in groups if len({p.class_name for p, _ in g}) == 1],
        ambiguous=[[(p, None) for p in same] for same in selection.ambiguous],
        repeats=list(repeats.values()),
        shown=SHOWN,
        in_a_set=IN_A_SET,
        thumbnail=thumbnail,
    )
