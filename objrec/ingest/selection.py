"""Which candidates make the data set: in order, without duplicates, and none that two classes claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from objrec.ingest.examine import Picture
from objrec.sources.base import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a candidate: a picture, or a status word and a reason for people."""

    candidate: Candidate
    picture: Picture | None = None
    status: str = "ok"
    reason: str | None = None


@dataclass(slots=True)
class _Entry:
    outcome: Outcome
    duplicate_of: _Entry | None = None
    rivals: list[_Entry] = field(default_factory=list)  # the same picture in other classes

    @property
    def class_name(self) -> str:
        return self.outcome.candidate.class_name

    @property
    def kept(self) -> bool:
        return self.outcome.picture is not None and self.duplicate_of is None and not self.rivals


class Selection:
    """Takes outcomes in the order of each class's candidates and says what is kept and what is still missing.

    The result does not depend on how the classes interleave. Within a class an outcome is a duplicate by what came
    before it in that class alone; a rivalry between classes depends on which outcomes were added, not on when. And as
    more outcomes only ever create rivalries, a caller that adds to a class only while ``missing`` is above zero ends
    with the same outcomes whatever the order: the least fixed point of a monotone rule.

    Args:
        class_names: in the order of the manifest.
        wanted: pictures for each class.
    """

    def __init__(self, class_names: Sequence[str], wanted: int) -> None:
        self._wanted = wanted
        self._entries: dict[str, list[_Entry]] = {name: [] for name in class_names}
        self._kept = dict.fromkeys(class_names, 0)
        self._first: dict[str, dict[str, _Entry]] = {}  # sha256 -> class name -> its first entry

    def add(self, outcome: Outcome) -> None:
        """Take the next outcome of its class."""
        entry = _Entry(outcome)
        self._entries[entry.class_name].append(entry)
        if outcome.picture is None:
            return
        holders = self._first.setdefault(outcome.picture.sha256, {})
        if entry.class_name in holders:
            entry.duplicate_of = holders[entry.class_name]
            return
        for rival in holders.values():
            self._kept[rival.class_name] -= rival.kept
            rival.rivals.append(entry)
            entry.rivals.append(rival)
        holders[entry.class_name] = entry
        self._kept[entry.class_name] += entry.kept

    def kept(self, class_name: str) -> int:
        return self._kept[class_name]

    def missing(self, class_name: str) -> int:
        return max(0, self._wanted - self._kept[class_name])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a manifest row for every outcome, class by class."""
        for entries in self._entries.values():
            for entry in entries:
                yield _row(entry)


def file_of(class_name: str, picture: Picture) -> str:
    """Where a kept picture lies below the data set's folder."""
    return f"{class_name}/{picture.sha256[:16]}.{picture.extension}"


def _row(entry: _Entry) -> dict[str, Any]:
    candidate, picture = entry.outcome.candidate, entry.outcome.picture
    status, reason = entry.outcome.status, entry.outcome.reason
    if entry.kept:
        status, reason = "kept", None
    elif entry.duplicate_of is not None:
        status, reason = "duplicate", f"the same bytes as {entry.duplicate_of.outcome.candidate.url}"
    elif entry.rivals:
        others = sorted({(r.class_name, r.outcome.candidate.url) for r in entry.rivals})
        status, reason = "ambiguous", "also found for " + ", ".join(f"{name} ({url})" for name, url in others)
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
        "file": file_of(candidate.class_name, picture) if picture is not None and entry.kept else None,
        "sha256": picture.sha256 if picture else None,
        "size": picture.size if picture else None,
        "width": picture.width if picture else None,
        "height": picture.height if picture else None,
        "status": status,
        "reason": reason,
    }
