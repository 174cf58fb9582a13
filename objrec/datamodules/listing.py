"""A folder of ``<class>/<picture>`` listed once, with a memory of what was hashed before."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from objrec.config.errors import UserError
from objrec.images.decode import SUFFIXES
from objrec.images.folders import combine_fingerprint

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder: those of ``objrec.images.folders.list_split``, in its order.

    Attributes:
        root: the folder.
        classes: names of the class folders that hold a picture, sorted; none for a folder without classes.
        names: of the files, relative to ``root``.
        targets: (N,) indices into ``classes``.
        sizes, times: (N,) bytes, and nanoseconds of the last change.
        newest_folder: when a class folder last gained or lost a file, nanoseconds.
        cache_dir: where hashes are remembered; None: nowhere.
    """

    root: Path
    classes: list[str]
    names: list[str]
    targets: Ints
    sizes: Ints
    times: Ints
    newest_folder: int
    cache_dir: Path | None = None

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    @cached_property
    def fingerprint(self) -> str:
        """The content fingerprint, as ``objrec.images.folders.fingerprint`` computes it.

        It is taken from ``split.json`` where that is younger than every picture and class folder. Otherwise files are
        hashed whose size or time differs from what is remembered.
        """
        return self._written or combine_fingerprint(
            (self.classes[target], digest) for target, digest in zip(self.targets, self.sha256, strict=True)
        )

    @property
    def sha256(self) -> list[str]:
        """The sha256 of every file, as 64 hex digits."""
        return [digest.tobytes().hex() for digest in self._digests]

    @cached_property
    def identity(self) -> str:
        """What two folders have in common that hold the same pictures in the same order."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.names)))
        digest.update(self._written.encode() if self._written is not None else self._digests.data)
        return digest.hexdigest()

    @cached_property
    def _written(self) -> str | None:
        """The fingerprint in ``split.json``, where it can be trusted."""
        try:
            path = self.root / "split.json"
            written, summary = path.stat().st_mtime_ns, json.loads(path.read_bytes())
            counts = dict(zip(self.classes, np.bincount(self.targets).tolist(), strict=True))
            if summary["counts"] == counts and written >= max(int(self.times.max()), self.newest_folder):
                return str(summary["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # of somebody else, or none
        return None

    @cached_property
    def _digests(self) -> npt.NDArray[np.uint8]:
        """The sha256 of every file, (N, 32)."""
        digests, known = self._remembered()
        unknown = np.flatnonzero(~known)
        if len(unknown):
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and hashing leave the interpreter lock
                for start in range(0, len(unknown), 4096):
                    part = unknown[start : start + 4096]
                    for i, digest in zip(part, pool.map(lambda i: _sha256(self.path(i)), part.tolist()), strict=True):
                        digests[i] = np.frombuffer(digest, np.uint8)
            self._remember(digests)
        return digests

    @property
    def _memory(self) -> Path | None:
        name = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:32]
        return None if self.cache_dir is None else self.cache_dir / "folders" / f"{name}.npz"

    def _remembered(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return digests, and for which files they hold."""
        digests, known = np.zeros((len(self.names), 32), np.uint8), np.zeros(len(self.names), bool)
        if self._memory is None:
            return digests, known
        try:
            with np.load(self._memory, allow_pickle=False) as saved:
                names = os.fsdecode(saved["names"].tobytes()).split("\0")
                rows = {name: i for i, name in enumerate(names)}
                row = np.array([rows.get(name, -1) for name in self.names])
                known = (row >= 0) & (saved["sizes"][row] == self.sizes) & (saved["times"][row] == self.times)
                digests[known] = saved["digests"][row[known]]
        except (OSError, ValueError, KeyError, IndexError):
            known[:] = False  # never hashed before, or the memory is damaged
        return digests, known

    def _remember(self, digests: npt.NDArray[np.uint8]) -> None:
        if self._memory is not None:
            names = np.frombuffer(os.fsencode("\0".join(self.names)), np.uint8)
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            beside = self._memory.with_suffix(f".{os.getpid()}.partial")
            with beside.open("wb") as file:
                np.savez(file, names=names, sizes=self.sizes, times=self.times, digests=digests)
            beside.replace(self._memory)


def list_classes(folder: Path, cache_dir: Path | None = None) -> Listing:
    """List a folder of ``<class>/<picture>``; nothing is read.

    Raises:
        UserError: when the folder is missing, or holds no picture.
    """
    _check_folder(folder)
    classes: list[str] = []
    rows: list[tuple[str, int, int]] = []
    targets: list[int] = []
    newest = 0
    for name in sorted(e.name for e in os.scandir(folder) if not e.name.startswith(".") and e.is_dir()):
        if found := _pictures(folder / name, prefix=f"{name}/"):
            targets += [len(classes)] * len(found)
            rows += found
            classes.append(name)
            newest = max(newest, (folder / name).stat().st_mtime_ns)
    if not rows:
        raise UserError(
            f"{folder} has no pictures: it should hold a folder of pictures for each class, as in cat/1.jpg"
        )
    return _listing(folder, classes, rows, targets, newest, cache_dir)


def list_pictures(folder: Path) -> Listing:
    """List the pictures of a folder and its subfolders, which are no classes.

    Raises:
        UserError: when the folder is missing, or holds no picture.
    """
    _check_folder(folder)
    rows: list[tuple[str, int, int]] = []
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        inside = Path(place).relative_to(folder).as_posix()
        rows += _pictures(Path(place), prefix="" if inside == "." else f"{inside}/")
    if not rows:
        raise UserError(f"{folder} has no pictures")
    return _listing(folder, [], rows, [0] * len(rows), 0, None)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: it should hold a folder of pictures for each class")


def _pictures(folder: Path, *, prefix: str) -> list[tuple[str, int, int]]:
    """Return (name, size, time) of the pictures of one folder, sorted by name."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  (a Path for each of 200,000 takes a second)
            if suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file():
                stat = entry.stat()
                found.append((entry.name, stat.st_size, stat.st_mtime_ns))
    return [(prefix + name, size, time) for name, size, time in sorted(found)]


def _listing(
    folder: Path,
    classes: list[str],
    rows: list[tuple[str, int, int]],
    targets: list[int],
    newest: int,
    cache_dir: Path | None,
) -> Listing:
    columns: Any = np.array([row[1:] for row in rows], dtype=np.int64)
    names = [row[0] for row in rows]
    return Listing(folder, classes, names, np.array(targets), columns[:, 0], columns[:, 1], newest, cache_dir)


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
