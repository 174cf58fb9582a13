"""Folders of ``<class>/<picture>``: how they are listed, and what makes two of them the same data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from objrec.config.errors import UserError
from objrec.images.decode import SUFFIXES


@dataclass(frozen=True)
class SplitFolder:
    """The pictures of a split.

    Attributes:
        classes: names of the class folders that hold a picture, sorted.
        files: (path, index into ``classes``), sorted by class and name.
        others: files in class folders whose name has no picture's suffix, sorted; hidden ones are not listed.
    """

    classes: list[str]
    files: list[tuple[Path, int]]
    others: list[Path]


def list_split(folder: Path) -> SplitFolder:
    """List a folder of ``<class>/<picture>`` by file names alone; nothing is decoded.

    Hidden files and folders, and files beside the class folders (``split.json``), are passed over.

    Raises:
        UserError: when the folder is missing, or holds no picture.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: it should hold a folder of pictures for each class")
    classes: list[str] = []
    files: list[tuple[Path, int]] = []
    others: list[Path] = []
    for name in sorted(_visible(folder)):
        if not (folder / name).is_dir():
            continue
        found = sorted(f for f in _visible(folder / name) if (folder / name / f).is_file())
        pictures = [f for f in found if Path(f).suffix.lower() in SUFFIXES]
        if pictures:
            files += [(folder / name / f, len(classes)) for f in pictures]
            classes.append(name)
        others += [folder / name / f for f in found if Path(f).suffix.lower() not in SUFFIXES]
    if not files:
        raise UserError(
            f"{folder} has no pictures: it should hold a folder of pictures for each class, as in cat/1.jpg"
        )
    return SplitFolder(classes, files, others)


def fingerprint(folder: Path) -> str:
    """Return the content fingerprint of a folder of ``<class>/<picture>``, 64 hex digits.

    Names of files, their order and their times do not matter. Raises UserError as ``list_split`` does.
    """
    split = list_split(folder)
    return combine_fingerprint((split.classes[target], _file_sha256(path)) for path, target in split.files)


def combine_fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of pictures given as (class name, sha256 of the file), in any order."""
    lines = sorted(os.fsencode(f"{name}\0{sha256}\n") for name, sha256 in rows)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
