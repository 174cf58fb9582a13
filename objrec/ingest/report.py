"""``ingest_report.html`` and ``ATTRIBUTION.md``: what was found, what became of it, and whom to thank.

Neither holds a time or a path of this machine: the same data set gives the same files.
"""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from objrec.config.errors import UserError
from objrec.images.decode import ImageError, decode
from objrec.images.preprocessing import resize_and_crop
from objrec.ingest.progress import asked
from objrec.sources.licenses import url_of

SHOWN: Final = 40  # thumbnails of a class
SHOWN_IN_ALL: Final = 2000
THUMBNAIL: Final = 96  # pixels
Row = Mapping[str, Any]

STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1.5rem 1rem}
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p.lead{margin:.2rem 0 1rem}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
td.short{color:#b3261e;font-weight:600}@media(prefers-color-scheme:dark){td.short{color:#ff897d}}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:.6rem}
figure{margin:0;min-width:0}figure img{width:100%;aspect-ratio:1;display:block;border-radius:4px;background:var(--soft)}
figcaption{font-size:.7rem;line-height:1.3;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;opacity:.85}
details{margin:.6rem 0}summary{cursor:pointer}li{overflow-wrap:anywhere;font-size:.85rem}
.notes{border-left:3px solid #c77700;padding-left:.8rem}
"""


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
    by_class = {name: [r for r in rows if r["class"] == name] for name in class_names}
    each = max(4, min(SHOWN, SHOWN_IN_ALL // max(1, len(class_names))))
    sections = []
    for name, found in by_class.items():
        kept = [r for r in found if r["status"] == "kept"]
        shown = kept[:each]
        thumbnails = pool.map(_thumbnail, [path.parent / r["file"] for r in shown])
        figures = "".join(_figure(r, t) for r, t in zip(shown, thumbnails, strict=True))
        more = f"<p>The first {each} of {len(kept)}.</p>" if len(kept) > each else ""
        sections.append(
            f'<section id="{_e(name)}"><h2>{_e(name)}</h2><div class="sheet">{figures}</div>{more}'
            f"{_refused(found)}</section>"
        )
    kept_in_all = sum(r["status"] == "kept" for r in rows)
    told = f'<div class="notes">{"".join(f"<p>{_e(n)}</p>" for n in notes)}</div>' if notes else ""
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data set report</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>Data set report</h1><p class=lead>{kept_in_all} images in {len(class_names)} classes kept, of "
        f"{len(rows)} candidates. Every candidate and what became of it is in <code>manifest.jsonl</code>, the credits "
        f"are in <code>ATTRIBUTION.md</code>.</p>{told}<div class=scroll>{_table(by_class, wanted)}</div>"
        f"<h2>Licences</h2>{_licenses(rows)}{''.join(sections)}</body></html>\n",
        encoding="utf-8",
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
    if row["landing_page"] and _is_link(row["landing_page"]):
        title = f"[{title}]({_md_url(row['landing_page'])})"
    creator = f" by {_md(row['creator'])}" if row["creator"] else ""
    name, url = _license_name(row["license"]), row["license_url"]
    license_text = f"[{_md(name)}]({_md_url(url)})" if url and _is_link(url) else _md(name)
    return f"{title}{creator}, {license_text}"


def _license_name(code: str | None) -> str:
    """What people call it."""
    if code is None:
        return "licence unknown"
    if code == "pdm":
        return "public domain"
    return {"cc0": "CC0"}.get(code, f"CC {code.upper()}" if url_of(code) else code)


def _table(by_class: Mapping[str, Sequence[Row]], wanted: int | None) -> str:
    counts = {name: Counter(r["status"] for r in found) for name, found in by_class.items()}
    totals: Counter[str] = Counter()
    for c in counts.values():
        totals.update(c)
    statuses = sorted((s for s in totals if s != "kept"), key=lambda s: (-totals[s], s))
    head = "".join(
        f"<th>{_e(t)}</th>" for t in ("class", "asked", "found", "kept", *(s.replace("_", " ") for s in statuses))
    )
    body = ""
    for name, c in counts.items():
        mark = " class=short" if wanted is not None and c["kept"] < wanted else ""
        cells = "".join(f"<td>{c[s] or ''}</td>" for s in statuses)
        body += (
            f'<tr><td><a href="#{_e(name)}">{_e(name)}</a></td><td>{asked(wanted)}</td><td>{c.total()}</td>'
            f"<td{mark}>{c['kept']}</td>{cells}</tr>"
        )
    sums = "".join(f"<th>{n}</th>" for n in (totals.total(), totals["kept"], *(totals[s] for s in statuses)))
    foot = f"<tr><th>all</th><th>{asked(wanted, len(counts))}</th>{sums}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}{foot}</tbody></table>"


def _licenses(rows: Iterable[Row]) -> str:
    counts = Counter((r["source"], _license_name(r["license"])) for r in rows if r["status"] == "kept")
    body = "".join(
        f"<tr><td>{_e(source)}</td><td>{_e(name)}</td><td>{n}</td></tr>" for (source, name), n in sorted(counts.items())
    )
    return f"<table><thead><tr><th>source</th><th>licence</th><th>images</th></tr></thead><tbody>{body}</tbody></table>"


def _refused(rows: Sequence[Row], limit: int = 100) -> str:
    refused = [r for r in rows if r["status"] != "kept"]
    if not refused:
        return ""
    items = "".join(
        f"<li><b>{_e(r['status'])}</b> {_e(r['url'])}: {_e(r['reason'] or '')}</li>" for r in refused[:limit]
    )
    rest = f"<li>and {len(refused) - limit} more, see manifest.jsonl</li>" if len(refused) > limit else ""
    return f"<details><summary>{len(refused)} not kept</summary><ul>{items}{rest}</ul></details>"


def _figure(row: Row, thumbnail: str) -> str:
    credit = " · ".join(filter(None, (row["creator"], _license_name(row["license"]) if row["license"] else None)))
    told = f"{row['title'] or row['url']}\n{credit}"
    image = f'<img loading="lazy" alt="{_e(row["class"])}" title="{_e(told)}" src="{thumbnail}">'
    page = row["landing_page"] or row["url"]
    if _is_link(page):
        image = f'<a href="{_e(page)}" rel="noreferrer">{image}</a>'
    return f"<figure>{image}<figcaption>{_e(credit)}</figcaption></figure>"


def _thumbnail(path: Path) -> str:
    """A data URL of the image, small; empty where it cannot be read any more."""
    try:
        image = resize_and_crop(decode(path, max_pixels=1 << 40, target=THUMBNAIL), THUMBNAIL, "bilinear")
    except (ImageError, UserError):
        return ""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _is_link(url: str) -> bool:
    """Whether a URL from outside may be made clickable: javascript: and the like may not."""
    return url.startswith(("https://", "http://"))


def _e(text: Any) -> str:
    return html.escape(str(text))


def _md(text: Any) -> str:
    """Text from outside for Markdown, which could otherwise format, link or embed."""
    plain = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_{}[]()#|!":
        plain = plain.replace(character, "\\" + character)
    return plain


def _md_url(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("<", "%3C").replace(">", "%3E")
