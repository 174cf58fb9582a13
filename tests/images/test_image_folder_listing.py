"""Listing and fingerprinting folders of <class>/<image>."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from objrec.config.errors import UserError
from objrec.images.decode import decode
from objrec.images.image_folder import count_classes, fingerprint, list_classes
from objrec.system import reading


@pytest.fixture
def split(tmp_path: Path) -> Path:
    folder = tmp_path / "split"
    for i, name in enumerate(["dog", "cat"]):
        (folder / name).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (8, 8), (i * 100, j * 100, 0)).save(folder / name / f"{j}.png")
    return folder


def png(colour: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_every_file_is_listed_as_an_image_or_with_a_reason(split: Path) -> None:
    for name, data in {
        "cat/UP.JPG": b"",
        "cat/0.jfif": png(),
        "cat/no suffix": png(),
        "cat/late.crdownload": png(),
        "cat/sub/deep/1.png": png(),
        ".net/1.png": png(),
        "cat/notes.txt": b"not an image",
        "cat/BMW.txt": b"BMW and other makes, a list",
        "cat/.hidden.png": png(),
        "cat/.thumbnails/1.png": png(),
        "cat/Thumbs.db": b"",
        "dog/__MACOSX/._0.png": b"",
        ".git/config": b"",
        "words/read.me": b"words",
        "loose.png": png(),
        "split.json": b"{}",
    }.items():
        (split / name).parent.mkdir(parents=True, exist_ok=True)
        (split / name).write_bytes(data)
    (split / "empty").mkdir()
    found = list_classes(split)
    assert found.classes == [".net", "cat", "dog"]
    assert count_classes(split) == {".net": 1, "cat": 7, "dog": 2}
    assert [(p.relative_to(split).as_posix(), c) for p, c in found.files] == [
        (".net/1.png", 0),
        ("cat/0.jfif", 1),
        ("cat/0.png", 1),
        ("cat/1.png", 1),
        ("cat/UP.JPG", 1),
        ("cat/late.crdownload", 1),
        ("cat/no suffix", 1),
        ("cat/sub/deep/1.png", 1),
        ("dog/0.png", 2),
        ("dog/1.png", 2),
    ]
    assert {name: reason.split(":")[0] for name, reason in found.others} == {
        "cat/notes.txt": "not_an_image",
        "cat/BMW.txt": "not_an_image",
        "cat/.hidden.png": "hidden",
        "cat/.thumbnails/1.png": "hidden",
        "cat/Thumbs.db": "hidden",
        "dog/__MACOSX/._0.png": "hidden",
        ".git/config": "hidden",
        "words/read.me": "not_an_image",
        "loose.png": "stray",
        "empty/": "empty",
    }


def test_a_loop_of_links_is_entered_once_and_a_name_that_is_not_utf8_is_read(split: Path) -> None:
    (split / "cat" / "again").symlink_to(split / "cat")
    odd = os.fsencode(split) + b"/caf\xe9"
    os.mkdir(odd)  # noqa: PTH102
    with open(odd + b"/\xe9t\xe9.png", "wb") as file:  # noqa: PTH123
        file.write(png())
    found = list_classes(split)
    assert found.classes == ["café", "cat", "dog"] and len(found.names) == 5
    assert found.path(0).read_bytes() == png() and fingerprint(split) == found.fingerprint


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
def test_an_image_that_cannot_be_read_is_an_error_and_no_verdict(
    split: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tries: list[str] = []

    def refuse(path: str, *args: object, **options: object) -> None:
        tries.append(str(path))
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(reading, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(reading, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"0\.png cannot be read: .*\. [A-Z]"):
        decode(split / "cat" / "0.png", max_pixels=100)
    assert len(tries) == (3 if number in (errno.EIO, errno.ESTALE) else 1)


def test_a_link_to_a_drive_that_is_gone_is_an_error(split: Path) -> None:
    (split / "cat" / "away.jpg").symlink_to("/nowhere/away.jpg")
    with pytest.raises(UserError, match=r"away\.jpg cannot be read"):
        list_classes(split)


def test_fingerprint_is_of_the_content(split: Path, tmp_path: Path) -> None:
    before = fingerprint(split)
    other = tmp_path / "elsewhere"
    shutil.copytree(split, other)
    (other / "cat" / "0.png").rename(other / "cat" / "z.png")
    os.utime(other / "cat" / "z.png", (0, 0))
    (other / "cat" / "notes.txt").write_text("not an image")
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
    with pytest.raises(UserError, match=r"one folder (of images )?per class"):
        list_classes(tmp_path / "x")
