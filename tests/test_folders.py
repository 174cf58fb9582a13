"""Listing and fingerprinting folders of <class>/<picture>."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from objrec.config.errors import UserError
from objrec.images.folders import fingerprint, list_split


@pytest.fixture
def split(tmp_path: Path) -> Path:
    folder = tmp_path / "split"
    for i, name in enumerate(["dog", "cat"]):
        (folder / name).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (8, 8), (i * 100, j * 100, 0)).save(folder / name / f"{j}.png")
    return folder


def test_lists_classes_and_files_in_order(split: Path) -> None:
    (split / "split.json").write_text("{}")
    (split / "cat" / ".hidden.png").write_bytes(b"")
    (split / "cat" / "notes.txt").write_text("")
    (split / "cat" / "UP.JPG").write_bytes(b"")
    (split / ".git").mkdir()
    (split / "empty").mkdir()
    found = list_split(split)
    assert found.classes == ["cat", "dog"]
    assert [(p.relative_to(split).as_posix(), c) for p, c in found.files] == [
        ("cat/0.png", 0),
        ("cat/1.png", 0),
        ("cat/UP.JPG", 0),
        ("dog/0.png", 1),
        ("dog/1.png", 1),
    ]
    assert found.others == [split / "cat" / "notes.txt"]


def test_fingerprint_is_of_the_content(split: Path, tmp_path: Path) -> None:
    before = fingerprint(split)
    other = tmp_path / "elsewhere"
    shutil.copytree(split, other)
    (other / "cat" / "0.png").rename(other / "cat" / "z.png")
    os.utime(other / "cat" / "z.png", (0, 0))
    (other / "cat" / "notes.txt").write_text("not a picture")
    assert fingerprint(other) == before
    (other / "cat" / "z.png").rename(other / "dog" / "z.png")
    assert fingerprint(other) != before


def test_one_changed_byte_changes_the_fingerprint(split: Path) -> None:
    before = fingerprint(split)
    path = split / "cat" / "0.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert fingerprint(split) != before


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: (p / "cat").mkdir(parents=True)])
def test_nothing_there_is_a_users_mistake(tmp_path: Path, make: object) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(UserError, match="pictures for each class"):
        list_split(tmp_path / "x")
