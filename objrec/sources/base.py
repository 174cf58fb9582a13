"""The protocol of an image source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A picture that a source offers for a class. What a source does not know is None.

    Attributes:
        url: where the bytes are; for local sources a ``file:`` or ``sample:`` address. It identifies the candidate.
        query: what was asked.
        landing_page: a page for people, where the licence can be seen.
    """

    class_name: str
    source: str
    url: str
    query: str | None = None
    landing_page: str | None = None
    title: str | None = None
    license: str | None = None
    license_url: str | None = None
    creator: str | None = None
    attribution: str | None = None
    width: int | None = None
    height: int | None = None


@runtime_checkable
class Source(Protocol):
    """Offers candidates, best first and without end where it has many: the caller stops when it has enough.

    Constructed from its config node by ``objrec.sources.build``.
    """

    name: str

    def class_names(self) -> Sequence[str] | None:
        """The classes that it has, or None where any can be asked for."""

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        """Yield candidates for a class. Raises UserError for what the user can mend."""


@runtime_checkable
class LocalSource(Source, Protocol):
    """A source that has the bytes itself; those of any other source are downloaded from ``candidate.url``."""

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        """Return the encoded picture; called from several threads at once.

        Raises:
            ImageError: ``too_large`` above ``max_bytes``, ``corrupt`` where the bytes cannot be had.
        """
