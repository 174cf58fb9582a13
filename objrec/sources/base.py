"""The protocol of an image source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image that a source offers for a class. What a source does not know is None.

    Attributes:
        url: where the bytes are; for local sources a ``file:`` or ``sample:`` address. It identifies the candidate.
        query: what was asked.
        landing_page: a page for people, where the licence can be seen.
        license: a code of ``objrec.sources.licenses`` where it is one of those, else as the source says.
        problem: why nothing can be had of it, where the source knows that: it becomes a row with this reason.
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
    problem: str | None = None


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
        """Return the encoded image; called from several threads at once.

        Raises:
            ImageError: ``too_large`` above ``max_bytes``, ``corrupt`` where the bytes cannot be had.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReply:
    """A service's answer.

    Attributes:
        headers: with lower-case names.
        body: parsed JSON, or None where it is none.
        waited: seconds that were waited because the service was busy.
        asked: further seconds that it asks to wait, where it says so.
    """

    status: int
    headers: Mapping[str, str]
    body: Any
    waited: float = 0.0
    asked: float | None = None

    @property
    def patience(self) -> str:
        """What was waited for a busy service and what it asks for, in words."""
        asked = "" if self.asked is None else f", and it asks to wait {self.asked:.0f} s more"
        return f"still busy after {self.waited:.0f} s of waiting{asked} (ingest.max_wait sets how long is waited)"


class Api(Protocol):
    """What a web source asks its service with. It paces, retries what may succeed later, and remembers answers."""

    def get(
        self,
        url: str,
        params: Mapping[str, str | int],
        *,
        interval: float,
        headers: Mapping[str, str] | None = None,
        busy: Callable[[Any], bool] = lambda body: False,
    ) -> ApiReply:
        """GET.

        Args:
            interval: the pace, in seconds between calls.
            busy: whether a body of status 200 says that the service is busy, which is then asked again.

        Raises:
            SourceStopped: without an answer.
        """

    def post(self, url: str, form: Mapping[str, str], *, interval: float) -> ApiReply:
        """POST a form; never remembered. Raises SourceStopped without an answer."""


def items(answer: Any, key: str) -> list[dict[str, Any]]:
    """The objects of a list in an answer, which may be anything."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return [i for i in found if isinstance(i, dict)] if isinstance(found, list) else []


def text_of(answer: Any, key: str) -> str | None:
    """A text in an answer; None where it is empty or something else."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return found if isinstance(found, str) and found else None


def number_of(answer: Any, key: str) -> int | None:
    """A whole number in an answer; None where it is something else."""
    found = answer.get(key) if isinstance(answer, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def load_json(text: str | bytes) -> Any:
    """Parse JSON from outside. Half a surrogate pair, as titles have that were cut off, becomes '?'.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        found = json.loads(text)
        if ("\\ud" if isinstance(text, str) else b"\\ud") in text.lower():  # type: ignore[operator]
            found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return found
