"""Names of licences: one code for what each service spells in its own way."""

from __future__ import annotations

import re
from typing import Final

CODES: Final = ("cc0", "pdm", "by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
_SPELLED: Final = {
    "attribution": "by",
    "sharealike": "sa",
    "share-alike": "sa",
    "noncommercial": "nc",
    "noderivatives": "nd",
}


def code_of(text: str | None) -> str | None:
    """Return the code for ``CC BY-SA 4.0``, ``cc-by-sa-3.0``, ``Public domain``, a licence's URL; None for others."""
    if not text:
        return None
    words = text.strip().lower()
    if "zero" in words or re.search(r"\bcc[-_ ]?0\b", words) or words == "cc0":
        return "cc0"
    if words in ("pdm", "pd") or "public domain" in words or "publicdomain" in words or words.startswith("pd-"):
        return "pdm"
    for spelled, short in _SPELLED.items():
        words = words.replace(spelled, short)
    if "licenses/" in words:
        words = words.split("licenses/", 1)[1].split("/")[0]
    found = re.match(r"(?:cc[-_ ])?(by(?:[-_ ](?:nc|nd|sa))*)(?![a-z])", words)
    if not found:
        return None
    parts = re.split(r"[-_ ]", found.group(1))
    code = "-".join(["by", *(p for p in ("nc", "nd", "sa") if p in parts)])
    return code if code in CODES else None


def url_of(code: str | None, version: str | None = None) -> str | None:
    """Return the page of a Creative Commons licence."""
    if code == "cc0":
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    if code == "pdm":
        return "https://creativecommons.org/publicdomain/mark/1.0/"
    return f"https://creativecommons.org/licenses/{code}/{version or '4.0'}/" if code in CODES else None
