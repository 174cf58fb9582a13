"""The protocol of an image source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A picture that a source offers for a class. What a source does not know is None.

    Attributes:
        url: where the bytes are; for local sources a ``file:`` or ``sample:`` address. It identifies the candidate.
        query: what was asked.
        landing_page: a page for people, where the licence can be seen.
        license: a code of ``objrec.sources.licenses`` where it is one of those, else as the source says.
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


class SourceStopped(Exception):
    """A source has no more to give in this run: a quota, a refusal, an outage. What was found stays."""


@runtime_checkable
class Source(Protocol):
    """Offers candidates, best first and without end where it has many: the caller stops when it has enough.

    Constructed from its config node by ``objrec.sources.build``. One that has an end, so that all of it can be taken,
    says ``finite = True``; one that has files in no class lists them with the reason in ``strays``.
    """

    name: str

    def class_names(self) -> Sequence[str] | None:
        """The classes that it has, or None where any can be asked for."""

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        """Yield candidates for a class, in the same order every time; one thread for each class.

        Raises:
            UserError: for what the user can mend.
            SourceStopped: for what only time can.
        """


@runtime_checkable
class LocalSource(Source, Protocol):
    """A source that has the bytes itself; those of any other source are downloaded from ``candidate.url``."""

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        """Return the encoded picture; called from several threads at once.

        Raises:
            ImageError: ``too_large`` above ``max_bytes``, ``corrupt`` where the bytes cannot be had.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReply:
    """A service's answer; ``headers`` has lower-case names, ``body`` is parsed JSON or None where it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Api(Protocol):
    """What a web source asks its service with. It paces, retries what may succeed later, and remembers answers."""

    def get(
        self, url: str, params: Mapping[str, str | int], *, interval: float, headers: Mapping[str, str] | None = None
    ) -> ApiReply:
        """GET. ``interval`` is the pace in seconds between calls. Raises SourceStopped without an answer."""

    def post(self, url: str, form: Mapping[str, str], *, interval: float) -> ApiReply:
        """POST a form; never remembered. Raises SourceStopped without an answer."""
