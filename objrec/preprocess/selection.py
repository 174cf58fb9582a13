"""What is kept of a raw data set, and how much of it repeats itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from objrec.preprocess.crop import Crop
from objrec.preprocess.split import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class CroppedImage:
    """A file of the raw data set.

    Attributes:
        file: its name in the class folder.
        scratch, number: the path of its crop, if there is one.
        crop: what is known of it; ``sha256``, ``code`` and ``coarse`` are of ``Crop``.
    """

    class_name: str
    file: str
    scratch: Path
    number: int
    crop: Crop

    @property
    def name(self) -> str:
        return f"{self.class_name}/{self.file}"

    @property
    def place(self) -> Path:
        return self.scratch / f"{self.number}.jpg"

    @property
    def sha256(self) -> str:
        return self.crop.sha256

    @property
    def code(self) -> int:
        return self.crop.code

    @property
    def coarse(self) -> int:
        return self.crop.coarse


@dataclass
class Selection:
    """What is kept of a raw data set and what is not.

    Attributes:
        kept: one of each image, none of those found under two classes.
        repeats: (kept, a file of the same class with the same bytes).
        ambiguous: files with the same bytes under several classes, together.
        unusable: rows of files without an image: class, file, reason.
    """

    kept: list[CroppedImage] = field(default_factory=list)
    repeats: list[tuple[CroppedImage, CroppedImage]] = field(default_factory=list)
    ambiguous: list[list[CroppedImage]] = field(default_factory=list)
    unusable: list[dict[str, str]] = field(default_factory=list)


def select(files: Iterable[CroppedImage]) -> Selection:
    """Keep one of each image, none of those found under two classes."""
    found = Selection()
    by_content: dict[str, list[CroppedImage]] = defaultdict(list)
    for image in files:
        if image.crop.problem:
            found.unusable.append(_row(image, image.crop.problem))
        else:
            by_content[image.sha256].append(image)
    for same in by_content.values():
        if len({p.class_name for p in same}) > 1:
            found.ambiguous.append(same)
        else:
            found.kept.append(same[0])
            found.repeats += [(same[0], p) for p in same[1:]]
    return found


def list_left_out(selection: Selection, assigned: Assignment) -> list[dict[str, str]]:
    """Return a row with the reason for each file that is in no split, in order of class and file."""
    rows = [*selection.unusable]
    for kept, other in selection.repeats:
        rows.append(_row(other, f"duplicate: the same bytes as {kept.file}"))
    for same in selection.ambiguous:
        reason = f"ambiguous: found under {', '.join(sorted({p.class_name for p in same}))}"
        rows += [_row(p, reason) for p in same]
    for index, rival in assigned.rivals.items():
        reason = f"near_duplicate: looks like {selection.kept[rival].name}, which belongs to {assigned.sides[rival]}"
        rows.append(_row(selection.kept[index], reason))
    return sorted(rows, key=lambda row: (row["class"], row["file"]))


def count_leakage(selection: Selection, assigned: Assignment) -> dict[str, int]:
    """Count duplicates and near-duplicates within and across classes."""
    classes = [{selection.kept[i].class_name for i in group} for group in assigned.groups]
    across = [len(group) for group, names in zip(assigned.groups, classes, strict=True) if len(names) > 1]
    return {
        "duplicates_within_classes": len(selection.repeats),
        "duplicates_across_classes": sum(map(len, selection.ambiguous)),
        "near_duplicate_groups": len(assigned.groups),
        "near_duplicate_groups_across_classes": len(across),
        "near_duplicates": sum(map(len, assigned.groups)),
        "near_duplicates_in_groups_across_classes": sum(across),
        "near_duplicates_left_out": len(assigned.rivals),
    }


def _row(image: CroppedImage, reason: str) -> dict[str, str]:
    return {"class": image.class_name, "file": image.file, "reason": reason}
