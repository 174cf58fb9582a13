"""What a site asks of robots: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote

AGENT = "objrec"
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
SLOW: Final = 1_000_000  # rules times characters
ESCAPE: Final = re.compile("%[0-9A-Fa-f]{2}")
ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))  # what a URL may hold, and '%'


class Robots:
    """The rules of a robots.txt for one agent.

    The longest matching pattern decides, Allow wins a tie, and ``*`` and ``$`` are wildcards, as RFC 9309 says.

    Args:
        text: a leading byte order mark is no part of it.
    """

    def __init__(self, text: str, agent: str = AGENT) -> None:
        groups = _groups(text.removeprefix("\ufeff"))
        mine = [rules for agents, rules in groups if agent.lower() in agents]
        chosen = mine or [rules for agents, rules in groups if "*" in agents]
        # The first match decides, so that what is asked often ends early.
        self._rules = sorted({rule for rules in chosen for rule in rules}, key=_rank, reverse=True)

    def is_slow_for(self, path: str) -> bool:
        """Whether ``allows`` may take more than some milliseconds, and should not hold up an event loop."""
        return len(self._rules) * len(path) > SLOW

    def allows(self, path: str) -> bool:
        """Whether ``path`` (with its query) may be fetched. Each rule takes time linear in the length of ``path``."""
        path = _canonical(path) or "/"
        return next((rule.allowed for rule in self._rules if rule.matches(path)), True)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A pattern, split at its ``*``.

    Attributes:
        length: of the pattern.
        anchored: it ends where the path ends.
    """

    allowed: bool
    length: int
    parts: tuple[str, ...]
    anchored: bool

    @classmethod
    def of(cls, pattern: str, *, allowed: bool) -> Self:
        pattern = _canonical(pattern)
        return cls(allowed, len(pattern), tuple(pattern.removesuffix("$").split("*")), pattern.endswith("$"))

    def matches(self, path: str) -> bool:
        """Take each part at its first place after the part before.

        A regular expression would try all other places as well, which takes exponential time for a hostile pattern.
        """
        first, *others = self.parts
        if not path.startswith(first):
            return False
        end = len(path)
        if self.anchored:
            last = others.pop() if others else None
            if last is None:
                return len(first) == end
            if not path.endswith(last):
                return False
            end -= len(last)
        position = len(first)
        for part in others:
            if (found := path.find(part, position, end)) < 0:
                return False
            position = found + len(part)
        return position <= end


def _rank(rule: _Rule) -> tuple[int, bool]:
    return rule.length, rule.allowed


def _groups(text: str) -> list[tuple[set[str], list[_Rule]]]:
    groups: list[tuple[set[str], list[_Rule]]] = []
    naming = False
    for line in text.replace("\r", "\n").split("\n"):  # str.splitlines knows more ends, which a path may hold
        key, colon, value = line.partition("#")[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if not naming:
                groups.append((set(), []))
            groups[-1][0].add(value.partition("/")[0].strip().lower())
            naming = True
        elif key in ("allow", "disallow"):
            naming = False
            if groups and value:
                groups[-1][1].append(_Rule.of(value, allowed=key == "allow"))
    return groups


def _canonical(text: str) -> str:
    """One spelling of a path or pattern: escaped only what must be, so that '%70' is 'p' and '%2f' is no slash."""

    def spelled(escape: re.Match[str]) -> str:
        character = chr(int(escape.group()[1:], 16))
        return character if character in UNRESERVED else escape.group().upper()

    return ESCAPE.sub(spelled, quote(text, safe=ASCII, errors="replace"))


def refusal(headers: Iterable[str], agent: str = AGENT) -> str | None:
    """Return the directive among X-Robots-Tag header values that forbids use, or None.

    A value may be addressed to an agent, as in ``googlebot: noindex``; those to others do not count.
    """
    for value in headers:
        addressed_to, colon, rest = value.partition(":")
        directives = value
        name = addressed_to.strip().lower()
        if colon and not set(name) & set(" ,") and name not in WITH_VALUE:
            if name not in (agent, "*"):
                continue
            directives = rest
        for directive in directives.lower().split(","):
            if directive.strip() in REFUSALS:
                return directive.strip()
    return None
