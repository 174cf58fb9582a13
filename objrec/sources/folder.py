"""A folder, zip or tar of ``<class>/<image>``."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Protocol

from objrec.config.errors import UserError, did_you_mean
from objrec.images.decode import ImageError
from objrec.sources.base import Candidate

JUNK: Final = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX", "manifest.jsonl", "split.json", "leakage.html"})
SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Store(Protocol):
    """Named members with their sizes in bytes, and a way to read one."""

    sizes: dict[str, int]

    def read(self, name: str) -> bytes: ...


class FolderSource:
    """A LocalSource of pictures that the user has.

    A single folder around the class folders is ignored, and so are hidden files. Within a class the order follows the
    hash of the name: the first hundred of a thousand are then a sample of them and not one photographer's Monday.

    Args:
        path: a folder or an archive (.zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz).
        max_entries: an archive with more members is refused.
        max_unpacked_bytes: an archive that unpacks to more is refused.

    Raises:
        UserError: the path is not there or not readable, the archive is damaged or hostile, there are no pictures, or
            not two classes.
    """

    name = "folder"

    def __init__(self, *, path: str | Path, max_entries: int, max_unpacked_bytes: int) -> None:
        self._path = Path(path)
        try:
            self._store = _open(self._path, max_entries, max_unpacked_bytes)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"source.path={path}: cannot be read: {reason}") from error
        self._members = _by_class(self._store.sizes, str(path))

    def class_names(self) -> Sequence[str]:
        return sorted(self._members)

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        if class_name not in self._members:
            nearest = did_you_mean(class_name, self._members, what="it has")
            raise UserError(f"classes.names: '{class_name}' is not in {self._path}.{nearest}")
        for member in sorted(self._members[class_name], key=lambda m: hashlib.sha256(m.encode()).digest()):
            yield Candidate(class_name=class_name, source=self.name, url=f"file:{member}")

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        member = candidate.url.removeprefix("file:")
        if self._store.sizes[member] > max_bytes:
            raise ImageError("too_large", f"{self._store.sizes[member]} bytes, more than ingest.max_bytes={max_bytes}")
        try:
            return self._store.read(member)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ImageError("corrupt", f"cannot be read: {error}") from error


class _Folder:
    """Files below a folder. Links are followed, for they are the user's own; a loop of them is not entered twice."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.sizes: dict[str, int] = {}
        seen: set[tuple[int, int]] = set()
        for place, folders, files in os.walk(root, followlinks=True, onerror=_raise):
            entered = Path(place).stat()
            if (entered.st_dev, entered.st_ino) in seen:
                folders.clear()
                continue
            seen.add((entered.st_dev, entered.st_ino))
            folders[:] = [f for f in folders if not _is_junk(f)]
            for file in files:
                path = Path(place, file)
                if not _is_junk(file) and path.is_file():
                    self.sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


class _Zip:
    """Members are read where they lie; nothing is unpacked. No member yields more than its checked, declared size."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        self._archive = zipfile.ZipFile(path)
        self.sizes: dict[str, int] = {}
        for info in self._archive.infolist():
            limits.count(info.filename, info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                limits.refuse(f"the member '{info.filename}' is a link or a device")
            if not info.is_dir() and not any(map(_is_junk, PurePosixPath(info.filename).parts)):
                self.sizes[info.filename] = info.file_size

    def read(self, name: str) -> bytes:
        return self._archive.read(name)


class _Tar:
    """A compressed tar is first unpacked to an unnamed temporary file, since it can only be read from front to back."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        self._file: IO[bytes] = _decompressed(path, limits)
        weakref.finalize(self, self._file.close)
        self._places: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                limits.count(member.name, member.size)
                if not (member.isreg() or member.isdir()):
                    limits.refuse(f"the member '{member.name}' is a link or a device")
                name = member.name.removeprefix("./")
                if member.isreg() and not any(map(_is_junk, PurePosixPath(name).parts)):
                    self.sizes[name], self._places[name] = member.size, member.offset_data

    def read(self, name: str) -> bytes:
        data = os.pread(self._file.fileno(), self.sizes[name], self._places[name])
        if len(data) < self.sizes[name]:
            raise EOFError("the archive ends within this member")
        return data


class _Limits:
    """What an archive may hold. Each check raises UserError."""

    def __init__(self, path: Path, max_entries: int, max_bytes: int) -> None:
        self._path, self._max_entries, self._max_bytes = path, max_entries, max_bytes
        self._entries = self._bytes = 0

    def refuse(self, reason: str) -> None:
        raise UserError(f"source.path={self._path}: refused, {reason}")

    def count(self, name: str, size: int) -> None:
        """Account for a member and check its name."""
        self._entries += 1
        self._bytes += size
        if self._entries > self._max_entries:
            self.refuse(f"more than {self._max_entries} members (source.max_entries)")
        self.check_bytes(self._bytes)
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
            self.refuse(f"the path of the member '{name}' leaves the archive")

    def check_bytes(self, unpacked: int) -> None:
        if unpacked > self._max_bytes:
            self.refuse(f"unpacked it has more than {self._max_bytes} bytes (source.max_unpacked_bytes)")


def _open(path: Path, max_entries: int, max_bytes: int) -> Store:
    if not path.exists():
        raise UserError(f"source.path={path}: there is no such file or folder")
    if path.is_dir():
        return _Folder(path)
    limits = _Limits(path, max_entries, max_bytes)
    if zipfile.is_zipfile(path):
        return _Zip(path, limits)
    if ".tar" in path.suffixes or path.suffix in (".tgz", ".tbz2", ".txz") or tarfile.is_tarfile(path):
        return _Tar(path, limits)
    raise UserError(f"source.path={path}: is not a folder, zip or tar of <class>/<image>")


def _decompressed(path: Path, limits: _Limits) -> IO[bytes]:
    import bz2
    import gzip
    import lzma

    with path.open("rb") as file:
        magic = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((o for start, o in openers.items() if magic.startswith(start)), None)
    if opener is None:
        return path.open("rb")
    target = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
    try:
        with opener(path, "rb") as packed:
            while block := packed.read(1 << 20):
                limits.check_bytes(target.tell() + len(block))
                target.write(block)
    except lzma.LZMAError as error:
        target.close()
        raise EOFError(str(error)) from error
    except BaseException:
        target.close()
        raise
    target.flush()
    target.seek(0)
    return target


def _by_class(sizes: dict[str, int], path: str) -> dict[str, list[str]]:
    """Group member names by the folder that names the class. Raises UserError where that makes fewer than two."""
    names = [n for n in sizes if "/" in n]
    depth = 0
    tops = {n.split("/", 1)[0] for n in names}
    if len(tops) == 1 and all(n.count("/") >= 2 for n in names):
        depth = 1
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(name.split("/")[depth], []).append(name)
    if not classes:
        found = f"; it has {len(sizes)} files, but not in folders named after classes" if sizes else ""
        raise UserError(f"source.path={path}: no <class>/<image> in it{found}")
    if len(classes) == 1:
        raise UserError(f"source.path={path}: has one class only, '{next(iter(classes))}'; at least two are needed")
    if {c.lower() for c in classes} <= SPLITS and all(n.count("/") >= depth + 2 for n in names):
        raise UserError(
            f"source.path={path}: holds splits ({', '.join(sorted(classes))}), not classes. Give the folder of one of "
            "them; the preprocess step makes the splits itself"
        )
    return classes


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _raise(error: OSError) -> None:
    raise error
