"""``ingest_report.html`` and ``ATTRIBUTION.md``: what was found, what became of it, and whom to credit.

Neither holds a time or a path of this machine: the same dataset gives the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from objrec.ingest.progress import asked
from objrec.reports.html import is_link, thumbnail, write_page
from objrec.sources.licenses import url_of

TEMPLATE: Final = Path(__file__).with_name("ingest_report.html.j2")
SHOWN: Final = 40  # thumbnails of a class
SHOWN_IN_ALL: Final = 2000
MAX_REFUSED: Final = 100  # rows of a class
Row = Mapping[str, Any]


def write_report(
    path: Path,
    rows: Sequence[Row],
    class_names: Sequence[str],
    wanted: int | None,
    notes: Sequence[str],
    pool: Executor,
) -> None:
    """Write the report.

    Args:
        path: beside the class folders; thumbnails are made from the images there.
        wanted: images for each class; None: all.
        notes: what stopped a source or a class early.
        pool: makes the thumbnails.
    """
    each = max(4, min(SHOWN, SHOWN_IN_ALL // max(1, len(class_names))))
    by_class = {name: [r for r in rows if r["class"] == name] for name in class_names}
    kept = {name: [r for r in found if r["status"] == "kept"] for name, found in by_class.items()}
    thumbnails = pool.map(thumbnail, [path.parent / r["file"] for found in kept.values() for r in found[:each]])
    counts = {name: Counter(r["status"] for r in found) for name, found in by_class.items()}
    totals = sum(counts.values(), Counter[str]())
    licenses = Counter((r["source"], _license_name(r["license"])) for r in rows if r["status"] == "kept")
    write_page(
        path,
        TEMPLATE,
        notes=notes,
        wanted=wanted,
        asked=asked,
        counts=counts,
        totals=totals,
        statuses=sorted((s for s in totals if s != "kept"), key=lambda s: (-totals[s], s)),
        licenses=[(*names, count) for names, count in sorted(licenses.items())],
        shown={name: [(r, next(thumbnails), _credit(r)) for r in found[:each]] for name, found in kept.items()},
        refused={name: [r for r in found if r["status"] != "kept"] for name, found in by_class.items()},
        max_refused=MAX_REFUSED,
    )


def write_attribution(path: Path, rows: Sequence[Row]) -> None:
    """Write the credits of all kept images as Markdown, by class."""
    kept = [r for r in rows if r["status"] == "kept"]
    known = [r for r in kept if r["license"] or r["creator"] or r["landing_page"]]
    lines = ["# Attribution", ""]
    if len(known) < len(kept):
        lines += [
            f"For {len(kept) - len(known)} of {len(kept)} images the source names neither creator nor licence.",
            "",
        ]
    for name in dict.fromkeys(r["class"] for r in known):
        lines += [f"## {_md(name)}", ""]
        lines += [f"- `{r['file']}`: {_credit_md(r)}" for r in known if r["class"] == name]
        lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def _credit_md(row: Row) -> str:
    title = _md(row["title"] or "untitled")
    if row["landing_page"] and is_link(row["landing_page"]):
        title = f"[{title}]({_md_url(row['landing_page'])})"
    creator = f" by {_md(row['creator'])}" if row["creator"] else ""
    name, url = _license_name(row["license"]), row["license_url"]
    license_text = f"[{_md(name)}]({_md_url(url)})" if url and is_link(url) else _md(name)
    return f"{title}{creator}, {license_text}"


def _license_name(code: str | None) -> str:
    """What people call it."""
    if code is None:
        return "licence unknown"
    if code == "pdm":
        return "public domain"
    return {"cc0": "CC0"}.get(code, f"CC {code.upper()}" if url_of(code) else code)


def _credit(row: Row) -> str:
    return " · ".join(filter(None, (row["creator"], _license_name(row["license"]) if row["license"] else None)))


def _md(text: Any) -> str:
    """Text from outside for Markdown, which could otherwise format, link or embed."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_{}[]()#|!":
        plain = plain.replace(character, "\\" + character)
    return plain


def _md_url(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("<", "%3C").replace(">", "%3E")
