"""Errors of users, one line each, with the cure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user can mend. Commands print it without a traceback and exit with status 2.

    Args:
        messages: one message, or several that were found together.
    """

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))

    def __reduce__(self) -> tuple[type[UserError], tuple[list[str]]]:
        return type(self), (self.messages,)  # survives the way back from a worker process


def did_you_mean(name: str, legal: Iterable[str], *, what: str = "legal") -> str:
    """Return `` Did you mean 'x'?`` for a near miss, else the legal names (at most 12 of them)."""
    legal = sorted(set(legal))
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.6)
    if not near:  # a right last part under a wrong section is a near miss too
        leaf = name.rpartition(".")[2]
        near = [k for k in legal if difflib.SequenceMatcher(None, leaf, k.rpartition(".")[2]).ratio() > 0.8][:1]
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" {what.capitalize()}: {', '.join(legal[:12])}{', ...' if len(legal) > 12 else ''}."
