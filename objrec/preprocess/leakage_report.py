"""A page that shows what repeats itself in a data set, and on which side of the split it went."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from objrec.images.decode import decode
from objrec.preprocess.selection import CroppedImage, Selection
from objrec.preprocess.split import Assignment

SHOWN: Final = 24  # sets of images in each section
IN_A_SET: Final = 8
THUMBNAIL: Final = 112  # pixels a side: a sharp screen's worth of what is shown
STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--out:#b3261e;--in:#1a7f37}
@media(prefers-color-scheme:dark){:root{--out:#ff897d;--in:#4fc16d}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:0 auto;padding:1.2rem}
h1{margin:.2rem 0}h2{margin:2rem 0 .3rem}.lead{margin:.2rem 0 1rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
.sets{display:flex;flex-wrap:wrap;gap:.8rem}
.set{display:flex;flex-wrap:wrap;gap:.5rem;padding:.5rem;border-radius:8px;background:var(--soft)}
figure{margin:0;width:96px}figure img{width:96px;height:96px;display:block;border-radius:4px;image-rendering:auto}
figcaption{font-size:.72rem;line-height:1.35;overflow-wrap:anywhere}
.in{color:var(--in);font-weight:600}.out{color:var(--out);font-weight:600}.none{opacity:.75}
"""
LABELS: Final = {
    "duplicates_within_classes": "repeats of an image in its class, the same bytes: left out",
    "duplicates_across_classes": "files with the same bytes under several classes: all left out",
    "near_duplicate_groups": "groups of images that look alike",
    "near_duplicates": "images in them",
    "near_duplicate_groups_across_classes": "of the groups, those with several classes",
    "near_duplicates_in_groups_across_classes": "images in those",
    "near_duplicates_left_out": "images left out because a look-alike belongs to another split",
}
Told = tuple[CroppedImage, str, bool]  # an image, what is said of it, and whether it is kept


def write_report(path: Path, selection: Selection, assigned: Assignment, counts: Mapping[str, int]) -> None:
    """Write the page. It holds its images, taken from the crops, and fetches nothing."""
    groups = [[_told(selection, assigned, i) for i in group] for group in assigned.groups]
    mixed = [g for g in groups if len({p.class_name for p, _, _ in g}) > 1]
    alike = [g for g in groups if len({p.class_name for p, _, _ in g}) == 1]
    split_of = dict(zip((p.name for p in selection.kept), assigned.splits, strict=True))
    repeats: dict[str, list[Told]] = {}
    for kept, other in selection.repeats[: 4 * SHOWN]:
        where = split_of[kept.name]
        first: Told = (kept, where or "left out", where is not None)
        repeats.setdefault(kept.name, [first]).append((other, "left out", False))
    ambiguous: list[list[Told]] = [[(p, "left out", False) for p in same] for same in selection.ambiguous[:SHOWN]]
    rows = "".join(f"<tr><td>{label}</td><td>{counts[key]}</td></tr>" for key, label in LABELS.items())
    kept_in_all = len(selection.kept) - len(assigned.rivals)
    unusable = Counter(row["reason"].split(":")[0] for row in selection.unusable)
    path.write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Leakage report</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<h1>Leakage report</h1><p class=lead>{kept_in_all} images kept. What repeats "
        "itself in the data set and where it went, so that nothing that a model was trained on is asked of it again. "
        "Every file that was left out is in <code>split.json</code>, with the reason.</p>"
        f"<div class=scroll><table>{rows}{_unusable_rows(unusable)}</table></div>"
        + _section(
            "Look-alikes under several classes",
            "Never kept in different splits. Is one mislabelled?",
            mixed,
        )
        + _section("Look-alikes within a class", "Never kept in different splits.", alike)
        + _section("The same bytes under several classes", "Nobody can tell which class is right.", ambiguous)
        + _section("The same bytes within a class", "One of them is kept.", list(repeats.values()))
        + "</body></html>\n",
        encoding="utf-8",
    )


def _told(selection: Selection, assigned: Assignment, index: int) -> Told:
    split = assigned.splits[index]
    return selection.kept[index], split or "left out", split is not None


def _unusable_rows(counts: Mapping[str, int]) -> str:
    return "".join(f"<tr><td>not usable: {_e(k)}</td><td>{n}</td></tr>" for k, n in sorted(counts.items()))


def _section(title: str, lead: str, sets: Sequence[Sequence[Told]]) -> str:
    if not sets:
        return f"<h2>{title}</h2><p class=none>None.</p>"
    more = f" The first {SHOWN} of {len(sets)}." if len(sets) > SHOWN else ""
    shown = "".join(_set(s) for s in sets[:SHOWN])
    return f"<h2>{title}</h2><p>{lead}{more}</p><div class=sets>{shown}</div>"


def _set(images: Iterable[Told]) -> str:
    told = list(images)
    figures = "".join(_figure(*t) for t in told[:IN_A_SET])
    more = f"<p>and {len(told) - IN_A_SET} more</p>" if len(told) > IN_A_SET else ""
    return f"<div class=set>{figures}{more}</div>"


def _figure(image: CroppedImage, said: str, kept: bool) -> str:
    return (
        f'<figure><img alt="{_e(image.name)}" loading="lazy" src="{_thumbnail(image.place)}"><figcaption>'
        f"{_e(image.name)} <span class={'in' if kept else 'out'}>{_e(said)}</span></figcaption></figure>"
    )


def _thumbnail(crop: Path) -> str:
    image = decode(crop, max_pixels=1 << 40)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _e(text: Any) -> str:
    return html.escape(str(text))
