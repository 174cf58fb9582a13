"""What is written has the permissions that the umask leaves; what may be private is for its owner alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from objrec.ingest.store import WebStore
from objrec.system.files import permit, replace_file, write_atomically


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_by_umask_whatever_a_library_chose(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "a", "x")
    replace_file(tmp_path / "b", lambda place: place.write_text("x"))
    handle, name = tempfile.mkstemp(dir=tmp_path)
    os.close(handle)
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    permit(Path(name))
    permit(folder)
    store = WebStore(tmp_path / "store", limits="a")
    store.write("0" * 64, b"x")
    store.close()
    files = [tmp_path / "a", tmp_path / "b", Path(name), store.path("0" * 64)]
    assert [mode(p) for p in files] == [0o666 & ~umask] * 4
    assert mode(folder) == 0o777 & ~umask


def test_private_files_are_for_their_owner(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x", mode=0o600)
    folder = tmp_path / "b"
    folder.mkdir()
    permit(folder, 0o700)
    assert mode(tmp_path / "a") == 0o600 and mode(folder) == 0o700
