"""What of the checkout travels with a job or a deployment, and how content becomes a version."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

IGNORE = ".amlignore"


def snapshot_files(root: Path) -> list[Path]:
    """Return the files of the code snapshot, sorted, as ``.amlignore`` allows them; the last rule that fits counts.

    Only the part of the grammar that our file uses is understood; a test holds this equal to the SDK's own reading.
    """
    lines = (line.strip() for line in (root / IGNORE).read_text().splitlines())
    rules = [line for line in lines if line and not line.startswith("#")]
    tops = {r[1:].split("/")[0] for r in rules if r.startswith("!")}
    found = (p for top in tops for p in ([root / top] if (root / top).is_file() else (root / top).rglob("*")))
    return sorted(p for p in found if p.is_file() and _allowed(p.relative_to(root).as_posix(), rules))


def _allowed(name: str, rules: Iterable[str]) -> bool:
    allowed = True
    for rule in rules:
        if fnmatchcase(name, rule.removeprefix("!")):
            allowed = rule.startswith("!")
    return allowed


def content_version(files: Iterable[Path], root: Path) -> str:
    """Return 12 hex digits of names and contents, free of times."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def stage(files: Iterable[Path], root: Path, folder: Path) -> Path:
    """Copy a snapshot to a folder of its own below ``folder`` and return it; the one before is removed.

    The SDK looks at every file of the folder that it uploads, ignored or not, for each step: at a checkout with an
    environment and a cache for seconds, at the copy for milliseconds.
    """
    files = list(files)
    place = folder / content_version(files, root)
    if place.is_dir() and content_version(snapshot_files(place), place) == place.name:
        return place
    beside = folder / f".{place.name}.{os.getpid()}"
    for path in files:
        target = beside / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for old in folder.iterdir():
        if old != beside:
            shutil.rmtree(old, ignore_errors=True)
    return beside.rename(place)
