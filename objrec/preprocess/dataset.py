"""The split folders of a raw data set."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.datamodules.listing import list_classes
from objrec.datamodules.split import SPLITS, assign_splits
from objrec.images.folders import combine_fingerprint
from objrec.pipeline.progress import report
from objrec.preprocess.crop import Crop, crop_numbered
from objrec.preprocess.leakage import write_report
from objrec.preprocess.pool import FilePool, Lost
from objrec.preprocess.selection import Picture, count_leakage, list_left_out, select


def build(config: Config, raw: Path, outputs: Mapping[str, Path]) -> None:
    """Verify, remove duplicates, crop to a consistent size and split without leakage.

    Args:
        raw: folder of ``<class>/<picture>``.
        outputs: ``train_dir``, ``valid_dir``, ``test_dir``: existing folders.

    Raises:
        UserError: fewer than two classes, a class has no usable picture, or is too small to be split.
    """
    scratch = outputs["train_dir"] / ".crops"  # hidden from whoever lists the folder, and a rename away from its place
    scratch.mkdir()
    try:
        _build(config, raw, outputs, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _build(config: Config, raw: Path, outputs: Mapping[str, Path], scratch: Path) -> None:
    settings = config.preprocess
    selection = select(_crop_all(config, raw, scratch))
    if empty := selection.empty_classes():
        told = Counter(row["reason"].split(":")[0] for row in selection.unusable if row["class"] in empty)
        why = ", ".join(f"{n} {reason}" for reason, n in told.most_common()) or "all are under another class too"
        raise UserError(f"{raw}: no usable picture of {', '.join(empty)} ({why})")
    assigned = assign_splits(
        selection.kept,
        shares=settings.split,
        seed=config.seed,
        distance=settings.near_duplicate_bits,
        exact=settings.exact_split,
    )
    counts = count_leakage(selection, assigned)
    left_out = list_left_out(selection, assigned)
    write_report(outputs["train_dir"] / "leakage.html", selection, assigned, counts)
    for split in SPLITS:
        chosen = [p for p, s in zip(selection.kept, assigned.splits, strict=True) if s == split]
        about = {"image_size": settings.image_size, "leakage": counts, "left_out": left_out}
        write_split(outputs[f"{split}_dir"], chosen, about)


def _crop_all(config: Config, raw: Path, scratch: Path) -> Iterator[Picture]:
    """Crop every file into ``scratch``, under its number; yield what is known of them in order."""
    listing = list_classes(raw)
    names = listing.names
    if len(listing.classes) < 2:
        raise UserError(f"{raw} has pictures of one class only ({listing.classes[0]}): two are needed")
    settings = config.preprocess
    work = partial(
        crop_numbered,
        raw=str(raw),
        scratch=str(scratch),
        size=settings.image_size,
        quality=settings.jpeg_quality,
        max_pixels=config.images.max_pixels,
    )
    pool = FilePool(work, names, workers=settings.workers or available_cores(), timeout=settings.timeout)
    found: list[Crop | None] = [None] * len(names)
    for done, (index, result) in enumerate(pool.results(), 1):
        found[index] = Crop(sha256="", problem=result.reason) if isinstance(result, Lost) else result
        report(done, len(names), "pictures")
    for index, (name, target, crop) in enumerate(zip(names, listing.targets, found, strict=True)):
        assert crop is not None
        file = name.partition("/")[2]
        yield Picture(class_name=listing.classes[target], file=file, scratch=scratch, number=index, crop=crop)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_split(folder: Path, pictures: Sequence[Picture], about: Mapping[str, Any]) -> None:
    """Move the crops to ``<class>/<name>.jpg`` and write ``split.json``."""
    counts = Counter(p.class_name for p in pictures)
    for name in counts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        place = folder / picture.class_name / f"{picture.sha256[:20]}.jpg"
        try:
            picture.place.rename(place)
        except OSError:  # another file system
            shutil.move(picture.place, place)
    summary = {
        "classes": sorted(counts),
        "counts": dict(sorted(counts.items())),
        "fingerprint": combine_fingerprint((p.class_name, p.crop.crop_sha256) for p in pictures),
        **about,
    }
    (folder / "split.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
