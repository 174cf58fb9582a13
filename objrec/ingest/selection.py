"""Which candidates make the data set: in order, without duplicates, and none that two classes claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from objrec.images.near_duplicates import NearbyIndex
from objrec.ingest.examine import ExaminedImage
from objrec.sources.base import Candidate

ENDLESS: Final = 1 << 40  # images of a class: more than there are


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateOutcome:
    """What came of a candidate.

    Attributes:
        image: None where there is none.
        status: ``ok``, or a word for why it cannot be used.
        reason: for people.
        exact: duplicates of it are those with the same bytes only.
    """

    candidate: Candidate
    image: ExaminedImage | None = None
    status: str = "ok"
    reason: str | None = None
    exact: bool = False

    @property
    def usable(self) -> bool:
        return self.image is not None and self.status == "ok"


class _Entry:
    """An outcome in its place among those of its class."""

    __slots__ = ("counted", "original", "outcome", "place", "rivals")

    def __init__(self, outcome: CandidateOutcome, place: int) -> None:
        self.outcome, self.place = outcome, place
        self.original: _Entry | None = None  # of which it is a duplicate
        self.rivals: list[_Entry] = []  # the same image in other classes
        self.counted: str | None = None  # the status that it is counted under

    @property
    def class_name(self) -> str:
        return self.outcome.candidate.class_name

    @property
    def status(self) -> str:
        if not self.outcome.usable:
            return self.outcome.status
        if self.original is not None:
            return "duplicate" if _same_bytes(self, self.original) else "near_duplicate"
        return "ambiguous" if self.rivals else "kept"


class CandidateSelection:
    """Takes outcomes in the order of each class's candidates and says what is kept and what is still missing.

    The result does not depend on how the classes interleave. Within a class an outcome is a duplicate by what came
    before it in that class alone; a rivalry between classes depends on which outcomes were added, not on when. And as
    more outcomes only ever create rivalries, a caller that adds to a class only while ``missing`` is above zero ends
    with the same outcomes whatever the order: the least fixed point of a monotone rule.

    Args:
        class_names: in the order of the manifest.
        wanted: images for each class; None: all.
        distance: bits of 128 by which near-duplicates may differ, or None: only the same bytes count.
    """

    def __init__(self, class_names: Sequence[str], wanted: int | None, *, distance: int | None) -> None:
        self._wanted = ENDLESS if wanted is None else wanted
        self._entries: dict[str, list[_Entry]] = {name: [] for name in class_names}
        self._statuses: dict[str, Counter[str]] = {name: Counter() for name in class_names}
        self._exact: dict[str, dict[str, _Entry]] = {}  # sha256 -> class name -> its original there
        self._near: NearbyIndex[_Entry] | None = None if distance is None else NearbyIndex(distance)

    def add(self, outcome: CandidateOutcome) -> None:
        """Take the next outcome of its class."""
        entries = self._entries[outcome.candidate.class_name]
        entry = _Entry(outcome, len(entries))
        entries.append(entry)
        if outcome.usable:
            self._compare(entry)
        self._count(entry)

    def kept(self, class_name: str) -> int:
        return self._statuses[class_name]["kept"]

    def missing(self, class_name: str) -> int:
        return max(0, self._wanted - self.kept(class_name))

    def statuses(self, class_name: str) -> Mapping[str, int]:
        """Counts of what came of the class's candidates so far, by status."""
        return {status: n for status, n in self._statuses[class_name].items() if n}

    def outcomes(self) -> Iterator[tuple[CandidateOutcome, bool]]:
        """Yield every outcome, class by class, and whether it is kept."""
        for entries in self._entries.values():
            for entry in entries:
                yield entry.outcome, entry.status == "kept"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a manifest row for every outcome, class by class."""
        for entries in self._entries.values():
            yield from map(_row, entries)

    def _compare(self, entry: _Entry) -> None:
        image = entry.outcome.image
        assert image is not None
        same = self._exact.setdefault(image.sha256, {})
        near = list(self._near.find(image)) if self._near is not None and not entry.outcome.exact else []
        others = {id(e): e for e in [*same.values(), *near]}.values()
        if own := [e for e in others if e.class_name == entry.class_name]:
            entry.original = min(own, key=lambda e: e.place)
        original = entry.original or entry
        same.setdefault(entry.class_name, original)
        if entry.original is None and self._near is not None and not entry.outcome.exact:
            self._near.insert(image, entry)
        # The same bytes count against a class even where they were a duplicate there.
        rivals = same.values() if entry.original else others
        for rival in rivals:
            if rival.class_name != entry.class_name:
                self._oppose(original, rival)
                self._oppose(rival, original)

    def _oppose(self, entry: _Entry, rival: _Entry) -> None:
        if rival not in entry.rivals:
            entry.rivals.append(rival)
        self._count(entry)

    def _count(self, entry: _Entry) -> None:
        counts = self._statuses[entry.class_name]
        if entry.counted is not None:
            counts[entry.counted] -= 1
        entry.counted = entry.status
        counts[entry.counted] += 1


def file_of(class_name: str, image: ExaminedImage) -> str:
    """The path of a kept image in the data set's folder."""
    return f"{class_name}/{image.sha256[:16]}.{image.extension}"


def _same_bytes(a: _Entry, b: _Entry) -> bool:
    return (
        a.outcome.image is not None
        and b.outcome.image is not None
        and (a.outcome.image.sha256 == b.outcome.image.sha256)
    )


def _row(entry: _Entry) -> dict[str, Any]:
    candidate, image, reason = entry.outcome.candidate, entry.outcome.image, entry.outcome.reason
    status = entry.status
    if status == "duplicate":
        assert entry.original is not None
        reason = f"the same bytes as {entry.original.outcome.candidate.url}"
    elif status == "near_duplicate":
        assert entry.original is not None
        reason = f"looks like {entry.original.outcome.candidate.url}"
    elif status == "ambiguous":
        others = sorted({(r.class_name, r.outcome.candidate.url) for r in entry.rivals})
        reason = "also found for " + ", ".join(f"{name} ({url})" for name, url in others)
    return row_of(candidate, image, status, reason)


def row_of(candidate: Candidate, image: ExaminedImage | None, status: str, reason: str | None) -> dict[str, Any]:
    """Return a row of the manifest."""
    return {
        "class": candidate.class_name,
        "source": candidate.source,
        "query": candidate.query,
        "url": candidate.url,
        "landing_page": candidate.landing_page,
        "title": candidate.title,
        "license": candidate.license,
        "license_url": candidate.license_url,
        "creator": candidate.creator,
        "attribution": candidate.attribution,
        "file": file_of(candidate.class_name, image) if image is not None and status == "kept" else None,
        "sha256": image.sha256 if image else None,
        "size": image.size if image else None,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "status": status,
        "reason": reason,
    }
