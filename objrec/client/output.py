"""Untrusted text, made safe to show in terminals and spreadsheets."""

from __future__ import annotations

import re

# what moves a cursor, rings a bell, breaks a line or turns the direction of writing
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is run by spreadsheets


def printable(text: str) -> str:
    r"""Return ``text`` for a terminal: in one line, control characters as ``\x1b``."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cell(text: str) -> str:
    """Return ``printable`` text for a cell of a table: behind a quote where it would be run as a formula."""
    return f"'{printable(text)}" if text.startswith(FORMULA) else printable(text)
