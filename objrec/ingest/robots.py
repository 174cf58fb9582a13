"""What a site asks of robots: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

AGENT = "objrec"
WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})


class Robots:
    """The rules of a robots.txt for one agent.

    The longest matching pattern decides, Allow wins a tie, and ``*`` and ``$`` are wildcards, as RFC 9309 says.
    """

    def __init__(self, text: str, agent: str = AGENT) -> None:
        groups = _groups(text)
        mine = [rules for agents, rules in groups if agent.lower() in agents]
        chosen = mine or [rules for agents, rules in groups if "*" in agents]
        self._rules = [rule for rules in chosen for rule in rules]

    def allows(self, path: str) -> bool:
        """Whether ``path`` (with its query) may be fetched."""
        path = unquote(path) or "/"
        best: tuple[int, bool] = (-1, True)
        for allowed, length, pattern in self._rules:
            if pattern.match(path):
                best = max(best, (length, allowed))
        return best[1]


Rule = tuple[bool, int, re.Pattern[str]]


def _groups(text: str) -> list[tuple[set[str], list[Rule]]]:
    groups: list[tuple[set[str], list[Rule]]] = []
    naming = False
    for line in text.splitlines()[:5000]:
        key, colon, value = line.split("#", 1)[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            if not naming:
                groups.append((set(), []))
            groups[-1][0].add(value.split("/")[0].lower())
            naming = True
        elif key in ("allow", "disallow"):
            naming = False
            if groups and value:
                groups[-1][1].append((key == "allow", len(value), _pattern(unquote(value))))
    return groups


def _pattern(rule: str) -> re.Pattern[str]:
    end = rule.endswith("$")
    parts = re.sub(r"\*+", "*", rule.removesuffix("$")).split("*")
    return re.compile(".*?".join(map(re.escape, parts)) + ("$" if end else ""), re.DOTALL)


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
