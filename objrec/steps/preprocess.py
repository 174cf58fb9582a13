"""Verify, deduplicate, crop, split."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.datamodules.split import SPLITS, assign_splits
from objrec.images.decode import ImageError, decode
from objrec.images.folders import combine_fingerprint, list_split
from objrec.images.geometry import resize_and_crop
from objrec.images.hashing import difference_hash
from objrec.pipeline.child import die_with_parent
from objrec.pipeline.progress import report
from objrec.pipeline.step import Port, make_step


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the raw data set, cropped, or the reason why there is none."""

    class_name: str
    source: str  # file name in the class folder
    sha256: str
    group: str
    jpeg: bytes
    problem: str = ""


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Verify, remove duplicates, crop to a consistent size and split without leakage."""
    folder = list_split(inputs["raw_data_dir"])
    if len(folder.classes) < 2:
        raise UserError(
            f"{inputs['raw_data_dir']} has pictures of one class only ({folder.classes[0]}): two are needed"
        )
    settings = config.preprocess
    crop = partial(
        crop_file, size=settings.image_size, quality=settings.jpeg_quality, max_pixels=config.images.max_pixels
    )
    named = [(str(path), folder.classes[target]) for path, target in folder.files]
    kept, problems = deduplicate(_in_parallel(crop, named))
    by_class: dict[str, list[str]] = {name: [] for name in folder.classes}
    for picture in kept:
        by_class[picture.class_name].append(picture.group)
    assigned = assign_splits(by_class, shares=settings.split, seed=config.seed, exact=settings.exact_split)
    for split in SPLITS:
        chosen = [p for p in kept if assigned[p.group] == split]
        write_split(outputs[f"{split}_dir"], chosen, image_size=settings.image_size, problems=problems)


def crop_file(named: tuple[str, str], *, size: int, quality: int, max_pixels: int) -> Picture:
    """Read, check, crop and encode one file. Never raises for what the file holds."""
    path, class_name = Path(named[0]), named[1]
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = decode(data, max_pixels=max_pixels, target=size)
    except ImageError as error:
        return Picture(class_name, path.name, sha256, "", b"", str(error))
    cropped = resize_and_crop(image, size)
    encoded = io.BytesIO()
    # full chroma: at these sizes 4:2:0 would halve an already small picture's colour
    cropped.save(encoded, "JPEG", quality=quality, subsampling=0)
    return Picture(class_name, path.name, sha256, f"{difference_hash(image):016x}", encoded.getvalue())


def deduplicate(pictures: Iterable[Picture]) -> tuple[list[Picture], list[dict[str, str]]]:
    """Keep one of each picture, none of those found under two classes; report the others, in order."""
    by_content: dict[str, list[Picture]] = defaultdict(list)
    problems = []
    for picture in pictures:
        if picture.problem:
            problems.append({"class": picture.class_name, "file": picture.source, "reason": picture.problem})
        else:
            by_content[picture.sha256].append(picture)
    kept = []
    for same in by_content.values():
        classes = sorted({p.class_name for p in same})
        if len(classes) == 1:
            kept.append(same[0])
            same, reason = same[1:], f"duplicate: the same bytes as {same[0].source}"
        else:
            reason = f"ambiguous: found under {', '.join(classes)}"
        problems += [{"class": p.class_name, "file": p.source, "reason": reason} for p in same]
    return kept, sorted(problems, key=lambda p: (p["class"], p["file"]))


def write_split(folder: Path, pictures: list[Picture], *, image_size: int, problems: list[dict[str, str]]) -> None:
    """Write ``<class>/<name>.jpg`` and ``split.json``."""
    counts = Counter(p.class_name for p in pictures)
    for name in counts:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / picture.class_name / f"{picture.sha256[:20]}.jpg").write_bytes(picture.jpeg)
    rows = ((p.class_name, hashlib.sha256(p.jpeg).hexdigest()) for p in pictures)
    summary = {
        "classes": sorted(counts),
        "counts": dict(sorted(counts.items())),
        "fingerprint": combine_fingerprint(rows),
        "image_size": image_size,
        "left_out": problems,
    }
    (folder / "split.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _in_parallel(crop: partial[Picture], named: list[tuple[str, str]]) -> Iterator[Picture]:
    workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 32)
    if len(named) < 64 or workers == 1:
        done: Iterable[Picture] = map(crop, named)
        yield from _reported(done, len(named))
        return
    # fork: nothing to import again, and this process has no threads that a fork could leave hanging
    with ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=die_with_parent) as pool:
        yield from _reported(pool.map(crop, named, chunksize=32), len(named))


def _reported(pictures: Iterable[Picture], total: int) -> Iterator[Picture]:
    for done, picture in enumerate(pictures, 1):
        report(done, total, "pictures")
        yield picture


STEP = make_step(
    name="preprocess",
    inputs=(Port(name="raw_data_dir"),),
    outputs=tuple(Port(name=f"{split}_dir") for split in SPLITS),
    reads=("preprocess", "images", "seed"),
    libraries=("pillow", "numpy"),
)(run)

if __name__ == "__main__":
    from objrec.pipeline.command import main

    main(STEP)
