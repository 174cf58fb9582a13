"""The split folders of a raw data set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.images.budget import MemoryShare
from objrec.images.image_folder import Listing, content_fingerprint, list_classes
from objrec.images.raw import SHORT
from objrec.preprocess.crop import Crop, crop_numbered
from objrec.preprocess.leakage_report import write_report
from objrec.preprocess.selection import CroppedImage, Selection, count_leakage, list_left_out, select
from objrec.preprocess.split import SPLITS, assign_splits
from objrec.system.cores import available_cores
from objrec.system.pool import Lost, run_all
from objrec.system.progress import note, report
from objrec.system.reading import shown


def build(config: Config, raw: Path, outputs: Mapping[str, Path]) -> None:
    """Verify, remove duplicates, crop to a consistent size and split without leakage.

    Args:
        raw: folder of ``<class>/<image>``.
        outputs: ``train_dir``, ``valid_dir``, ``test_dir``: existing folders.

    Raises:
        UserError: fewer than two classes, a class has no usable image, or is too small to be split.
    """
    scratch = outputs["train_dir"] / ".crops"  # hidden from listings, and on the file system of its target
    scratch.mkdir()
    try:
        _build(config, raw, outputs, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(config: Config, raw: Path, outputs: Mapping[str, Path], scratch: Path) -> None:
    settings = config.preprocess
    listing = _list(raw)
    selection = select(_crop_all(config, listing, scratch))
    selection.unusable += _passed_over(listing)
    _drop_empty(config, raw, listing, selection)
    assigned = assign_splits(
        selection.kept,
        shares=settings.split,
        seed=config.seed,
        distance=settings.near_duplicate_bits,
        exact=settings.exact_split,
    )
    if assigned.by_count:
        note(
            f"preprocess: {_some(assigned.by_count)} split by count, being too small for chance: "
            "a new image may move a few of the old ones to another split"
        )
    counts = count_leakage(selection, assigned)
    about = {
        "image_size": settings.image_size,
        "raw_fingerprint": content_fingerprint((p.class_name, p.sha256) for p in selection.kept),
        "split_by_count": assigned.by_count,
        "sources": _sources(raw),
        "leakage": counts,
        "left_out": list_left_out(selection, assigned),
    }
    write_report(outputs["train_dir"] / "leakage.html", selection, assigned, counts)
    for split in SPLITS:
        chosen = [p for p, s in zip(selection.kept, assigned.splits, strict=True) if s == split]
        write_split(outputs[f"{split}_dir"], chosen, about)


def _list(raw: Path) -> Listing:
    """List the raw images, and say which folders hold none."""
    listing = list_classes(raw)
    folders = {name.split("/")[0] for name, _ in listing.others if "/" in name and not name.startswith((".", "__"))}
    if none := sorted(folders - {name.split("/")[0] for name in listing.names}):
        note(f"preprocess: no image in {_some(none)}: no class")
    if len(listing.classes) < 2:
        raise UserError(f"{raw} has images of one class only ({listing.classes[0]}): two are needed")
    return listing


def _passed_over(listing: Listing) -> list[dict[str, str]]:
    """Return rows of the files that are no image of a class."""
    rows = []
    for name, reason in listing.others:
        folder, _, file = name.rpartition("/") if "/" not in name else name.partition("/")
        rows.append({"class": shown(folder), "file": shown(file), "reason": reason})
    return rows


def _drop_empty(config: Config, raw: Path, listing: Listing, selection: Selection) -> None:
    """Refuse a class of which no image is kept, or go on without it where that is asked for."""
    empty = sorted(set(listing.classes) - {p.class_name for p in selection.kept})
    if not empty:
        return
    counts = Counter(row["reason"].split(":")[0] for row in selection.unusable if row["class"] in empty)
    why = ", ".join(f"{n} {reason}" for reason, n in counts.most_common()) or "all are under another class too"
    left = len(listing.classes) - len(empty)
    if not config.preprocess.drop_empty_classes or left < 2:
        cure = "" if left < 2 else ". preprocess.drop_empty_classes=true goes on without"
        raise UserError(f"{raw}: no usable image of {', '.join(empty)} ({why}){cure}")
    note(f"preprocess: {_some(empty)} dropped: no usable image ({why})")


def _sources(raw: Path) -> dict[str, int]:
    """Return how many raw images are from each source, as the manifest of ingest says; nothing where there is none."""
    try:
        rows = [json.loads(line) for line in (raw / "manifest.jsonl").read_bytes().splitlines()]
        return dict(sorted(Counter(str(row["source"]) for row in rows if row["status"] == "kept").items()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _some(names: Sequence[str]) -> str:
    """Name up to five classes."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(names[:5])}{more}"


def _crop_all(config: Config, listing: Listing, scratch: Path) -> Iterator[CroppedImage]:
    """Crop every file into ``scratch``, under its number; yield what is known of them in order."""
    names = listing.names
    settings = config.preprocess
    workers = settings.workers or available_cores()
    work = partial(
        crop_numbered,
        raw=str(listing.root),
        scratch=str(scratch),
        size=settings.image_size,
        quality=settings.jpeg_quality,
        max_pixels=config.images.max_pixels,
        share=MemoryShare.among(workers),
    )
    found: list[Crop | None] = [None] * len(names)
    results = run_all(work, enumerate(names), workers=workers, timeout=settings.timeout)
    for done, (index, result) in enumerate(results, 1):
        if isinstance(result, Lost):
            result = Crop(sha256="", problem=f"{'timeout' if result.late else 'crashed'}: decoding it {result.reason}")
        found[index] = result
        report(done, len(names), "images")
    for index, (name, target, crop) in enumerate(zip(names, listing.targets, found, strict=True)):
        assert crop is not None
        file = shown(name.partition("/")[2])
        yield CroppedImage(class_name=listing.classes[target], file=file, scratch=scratch, number=index, crop=crop)


def _file_name(image: CroppedImage) -> str:
    return f"{image.sha256[:20]}.jpg"


def write_split(folder: Path, images: Sequence[CroppedImage], about: Mapping[str, Any]) -> None:
    """Move the crops to ``<class>/<name>.jpg`` and write ``split.json``."""
    counts = Counter(p.class_name for p in images)
    for name in counts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image in images:
        place = folder / image.class_name / _file_name(image)
        try:
            image.place.rename(place)
        except OSError:  # another file system
            shutil.move(image.place, place)
    summary = {
        "classes": sorted(counts),
        "counts": dict(sorted(counts.items())),
        "fingerprint": content_fingerprint((p.class_name, p.crop.crop_sha256) for p in images),
        "images": {f"{p.class_name}/{_file_name(p)}": p.sha256[:SHORT] for p in images},
        **about,
    }
    (folder / "split.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
