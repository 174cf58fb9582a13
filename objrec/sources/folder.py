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
from pathlib import Path
from typing import IO, Any, Final, Protocol

from objrec.config.errors import UserError, did_you_mean
from objrec.images.decode import ImageError
from objrec.images.image_folder import JUNK_FOLDERS, OURS, STARTS, USUAL, not_an_image
from objrec.sources.base import Candidate
from objrec.system.reading import read_file, shown, unreadable

METHODS: Final = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 97: "WavPack", 98: "PPMd", 99: "AES encryption"}
SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


class Members(Protocol):
    """Named members with their sizes in bytes, and a way to read one."""

    sizes: dict[str, int]

    def read(self, name: str) -> bytes: ...


class FolderSource:
    """A LocalSource of images that the user has.

    A single folder around the class folders is ignored. Within a class, folders below it included, the order follows
    the hash of the name: the first hundred of a thousand are then a sample of them and not one photographer's Monday.
    Files that are passed over by their names (see ``objrec.images.image_folder``) come last, and ``read`` says why.

    Attributes:
        strays: (name, reason) of files that are in no class.

    Args:
        path: a folder or an archive (.zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz).
        max_entries: an archive with more members is refused.
        max_unpacked_bytes: an archive that unpacks to more is refused.

    Raises:
        UserError: the path is not there or not readable, the archive is damaged or hostile, there are no images, or
            not two classes.
    """

    name = "folder"
    finite = True

    def __init__(self, *, path: str | Path, max_entries: int, max_unpacked_bytes: int) -> None:
        self._path = Path(path)
        try:
            self._store = _open(self._path, max_entries, max_unpacked_bytes)
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(f"source.path={path}: cannot be read: {reason}") from error
        classes, self.strays = _by_class(self._store.sizes, str(path))
        self._members = {name: sorted(found, key=_rank) for name, found in classes.items()}
        self._by_url = {_url(m): m for found in self._members.values() for m in found}

    def class_names(self) -> Sequence[str]:
        return sorted(self._members)

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        if class_name not in self._members:
            nearest = did_you_mean(class_name, self._members, what="it has")
            raise UserError(f"classes.names: '{class_name}' is not in {self._path}.{nearest}")
        for member in self._members[class_name]:
            yield Candidate(class_name=class_name, source=self.name, url=_url(member))

    def read(self, candidate: Candidate, *, max_bytes: int) -> bytes:
        member = self._by_url[candidate.url]
        if _is_passed_over(member):
            raise ImageError("unsupported", "hidden, or not named as an image")
        if self._store.sizes[member] > max_bytes:
            raise ImageError("too_large", f"{self._store.sizes[member]} bytes, more than ingest.max_bytes={max_bytes}")
        try:
            return self._store.read(member)
        except OSError as error:  # of the drive, and not of the image
            raise unreadable(self._path, error) from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ImageError("corrupt", f"cannot be read: {error}") from error


def _rank(member: str) -> tuple[bool, bytes]:
    return _is_passed_over(member), hashlib.sha256(os.fsencode(member)).digest()


def _url(member: str) -> str:
    """A name that is not UTF-8 has its other bytes written as ``\\udce9``."""
    return "file:" + member.encode("utf-8", "backslashreplace").decode()


def _is_passed_over(member: str) -> bool:
    return bool(not_an_image(member, lambda: STARTS[0]))  # by its name alone: what it holds is seen when it is decoded


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
            for file in files:
                path = Path(place, file)
                try:
                    status = path.stat()
                except OSError as error:  # a link to a drive that is not there says nothing of the image
                    raise unreadable(path, error) from error
                if stat.S_ISREG(status.st_mode):
                    self.sizes[path.relative_to(root).as_posix()] = status.st_size

    def read(self, name: str) -> bytes:
        return read_file(self._root / name)


class _Zip:
    """Members are read in place; nothing is unpacked. No member yields more than its checked, declared size."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        self._archive = zipfile.ZipFile(path)
        self.sizes: dict[str, int] = {}
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive.infolist():
            limits.count(info.filename, info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                limits.refuse(f"the member '{info.filename}' is a link or a device")
            if info.flag_bits & 1 or info.compress_type == 99:
                limits.refuse("it is encrypted: unpack it with its password, and give the folder")
            if info.compress_type not in (0, 8, 12, 14):
                method = METHODS.get(info.compress_type, f"number {info.compress_type}")
                limits.refuse(f"its compression, {method}, is not known here: unpack it, and give the folder")
            name = info.filename.replace("\\", "/")  # PowerShell's and .NET's
            if not name.endswith("/"):
                self.sizes[name], self._infos[name] = info.file_size, info

    def read(self, name: str) -> bytes:
        return self._archive.read(self._infos[name])


class _Tar:
    """A compressed tar is first unpacked to an unnamed temporary file, since it can only be read from front to back."""

    def __init__(self, path: Path, limits: _Limits) -> None:
        self._file: IO[bytes] = _decompressed(path, limits)
        weakref.finalize(self, self._file.close)
        self._pieces: dict[
            str, list[tuple[int, int]]
        ] = {}  # of each member: (offset in it, bytes), one after the other
        self._places: dict[str, int] = {}  # where the first of them begins
        self.sizes: dict[str, int] = {}
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                limits.count(member.name, member.size)
                if not (member.isreg() or member.isdir()):
                    limits.refuse(f"the member '{member.name}' is a link or a device")
                name = member.name.removeprefix("./")
                name = name if "/" in name else name.replace("\\", "/")
                if member.isreg():
                    self.sizes[name], self._places[name] = member.size, member.offset_data
                    sparse: Any = member.sparse
                    self._pieces[name] = sparse if sparse is not None else [(0, member.size)]

    def read(self, name: str) -> bytes:
        found, place = bytearray(self.sizes[name]), self._places[name]
        for offset, size in self._pieces[name]:  # between the pieces of a sparse file are zeros
            data = os.pread(self._file.fileno(), size, place)
            if len(data) < size or offset + size > len(found):
                raise EOFError("the archive ends within this member")
            found[offset : offset + size] = data
            place += size
        return bytes(found)


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


def _open(path: Path, max_entries: int, max_bytes: int) -> Members:
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


def _by_class(sizes: dict[str, int], path: str) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Group member names by the folder that names the class; return what is in none of them, too.

    Raises:
        UserError: there are no two classes.
    """
    named = {n: n.split("/") for n in sizes}
    shaping = {n: p for n, p in named.items() if not _is_passed_over(n) and not JUNK_FOLDERS & set(p[:-1])}
    shaping = {n: p for n, p in shaping.items() if os.path.splitext(n)[1].lower() in USUAL} or shaping  # noqa: PTH122
    depth = 0  # of the class folders: folders that are alone are around them
    while len({p[depth] for p in shaping.values() if len(p) > depth + 1}) == 1:
        depth += 1
    if len(found := {p[depth] for p in shaping.values() if len(p) > depth + 1}) < 2:
        if not depth:
            why = f"; it has {len(sizes)} files, but not in folders named after classes" if sizes else ""
            raise UserError(f"source.path={path}: contains no <class>/<image>{why}")
        only = shown(next(p[depth - 1] for p in shaping.values() if len(p) > depth))
        raise UserError(f"source.path={path}: has only one class, '{only}'; at least two are needed")
    if {c.lower() for c in found} <= SPLITS and all(len(p) > depth + 2 for p in shaping.values() if p[depth] in found):
        raise UserError(
            f"source.path={path}: contains splits ({', '.join(sorted(found))}), not classes. Give the folder of one of "
            "them; the preprocess step makes the splits itself"
        )
    around = next(p[:depth] for p in shaping.values() if len(p) > depth + 1)
    classes: dict[str, list[str]] = {}
    strays = []
    for name, parts in named.items():
        if len(parts) > depth + 1 and parts[:depth] == around and parts[depth] in found:
            classes.setdefault(shown(parts[depth]), []).append(name)
        elif name not in OURS:
            strays.append((shown(name), "in no class folder"))
    return classes, sorted(strays)


def _raise(error: OSError) -> None:
    raise error
