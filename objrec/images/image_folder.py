"""Folders of ``<class>/<image>``: what is listed, what is passed over and why, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from objrec.config.errors import UserError
from objrec.images.decode import SUFFIXES
from objrec.system.cores import available_cores
from objrec.system.files import atomic_file
from objrec.system.reading import SETTLED, Stamp, read_file, shown, stamp_of, unreadable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

USUAL: Final = SUFFIXES | {".jfif", ".jpe"}  # believed until decoded; any other file is asked for its first bytes
STARTS: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
BRANDS: Final = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})
OURS: Final = frozenset(
    {"split.json", "manifest.jsonl", "leakage.html", "ingest_report.html", "ATTRIBUTION.md", "manifest.json"}
)  # what the steps write beside class folders
JUNK: Final = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r"})
JUNK_FOLDERS: Final = frozenset(
    {".git", ".svn", ".hg", ".dvc", ".cache", ".crops", ".objrec", ".venv", ".idea", ".vscode", ".ipynb_checkpoints"}
    | {".thumbnails", ".AppleDouble", ".Trashes", ".Spotlight-V100", ".fseventsd", ".TemporaryItems", "__MACOSX"}
    | {"@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"}
)
Row = tuple[str, Stamp]  # name relative to the folder
Other = tuple[str, str]  # name relative to the folder, and why it is no image of a class


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        root: the folder.
        classes: names of the classes that have an image, sorted; none for a folder without classes.
        names: of the files, relative to ``root``, sorted by class and name.
        targets: (N,) indices into ``classes``.
        stamps: (N, 4) what a change of a file shows in; see ``objrec.system.reading.stamp_of``.
        others: (name relative to ``root``, reason) of every other file, and of folders without any; sorted.
        listed_at: nanoseconds since 1970.
        cache_dir: where hashes are remembered; None: nowhere.
    """

    root: Path
    classes: list[str]
    names: list[str]
    targets: Ints
    stamps: Ints
    others: list[Other]
    listed_at: int
    cache_dir: Path | None = None

    def path(self, index: int) -> Path:
        return self.root / self.names[index]

    @property
    def files(self) -> list[tuple[Path, int]]:
        """(path, index into ``classes``) of each image."""
        return [(self.root / name, target) for name, target in zip(self.names, self.targets.tolist(), strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """The content fingerprint: of classes and bytes, whatever the names, order and times of the files are."""
        return content_fingerprint(zip(self._class_names(), self.sha256, strict=True))

    @cached_property
    def identity(self) -> str:
        """What two folders have in common that hold the same images under the same names."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.names)))
        digest.update(self._digests.data)
        return digest.hexdigest()

    def _class_names(self) -> list[str]:
        return [self.classes[target] if self.classes else "" for target in self.targets.tolist()]

    @property
    def sha256(self) -> list[str]:
        """The sha256 of every file, as 64 hex digits."""
        return [digest.tobytes().hex() for digest in self._digests]

    @cached_property
    def _digests(self) -> npt.NDArray[np.uint8]:
        """The sha256 of every file, (N, 32)."""
        import numpy as np

        digests, known = self._remembered()
        unknown = np.flatnonzero(~known)
        if len(unknown):
            with ThreadPoolExecutor(available_cores()) as pool:  # reading and hashing leave the interpreter lock
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
        import numpy as np

        digests, known = np.zeros((len(self.names), 32), np.uint8), np.zeros(len(self.names), bool)
        if self._memory is None:
            return digests, known
        try:
            with np.load(self._memory, allow_pickle=False) as saved:
                names = os.fsdecode(saved["names"].tobytes()).split("\0")
                rows = {name: i for i, name in enumerate(names)}
                row = np.array([rows.get(name, -1) for name in self.names])
                known = (row >= 0) & (saved["stamps"][row] == self.stamps).all(axis=1)
                digests[known] = saved["digests"][row[known]]
        except (OSError, ValueError, KeyError, IndexError):
            known[:] = False  # never hashed before, or the memory is damaged
        return digests, known

    def _remember(self, digests: npt.NDArray[np.uint8]) -> None:
        import numpy as np

        if self._memory is not None:
            names = np.frombuffer(os.fsencode("\0".join(self.names)), np.uint8)
            stamps = np.where(self.stamps[:, 2:3] > self.listed_at - SETTLED, -1, self.stamps)
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._memory) as file:
                np.savez(file, names=names, stamps=stamps, digests=digests)


def list_classes(folder: Path, cache_dir: Path | None = None) -> Listing:
    """List a folder of ``<class>/<image>``, folders below a class included; links are followed.

    A file whose name ends as images do is taken for one, any other by its first bytes. What is hidden (a name that
    begins with a dot, what systems leave in folders), no image or in no class folder is in ``others``. A class folder
    may have any name but those of JUNK_FOLDERS.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image.
    """
    began = time.time_ns()
    found, others = _walk_classes(folder)
    classes = sorted(found)
    rows = [row for name in classes for row in sorted(found[name])]
    return _listing(folder, classes, rows, [len(found[name]) for name in classes], others, began, cache_dir)


def count_classes(folder: Path) -> dict[str, int]:
    """Return the number of images of each class that ``list_classes`` lists, without importing NumPy.

    Raises:
        UserError: as ``list_classes`` does.
    """
    return {name: len(images) for name, images in _walk_classes(folder)[0].items()}


def _walk_classes(folder: Path) -> tuple[dict[str, list[Row]], list[Other]]:
    """Return the images of each class and all other files; see ``list_classes``."""
    _check_folder(folder)
    found, others = dict[str, list[Row]](), list[Other]()
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        name = entry.name
        if not entry.is_dir():
            if name not in OURS and not name.startswith(".objrec"):
                others.append((name, "hidden" if _is_hidden(name) else "stray: in no class folder"))
            continue
        junk = name in JUNK_FOLDERS or name.startswith(".Trash")
        images, rest = _walk(folder, f"{name}/", hidden=junk)
        others += rest
        if images:
            found.setdefault(shown(name), []).extend(images)
        elif not rest and not name.startswith(".") and not junk:
            others.append((f"{name}/", "empty: no file in this class folder"))
    if not found:
        raise UserError(f"{folder} has no images: expected one folder per class, as in cat/1.jpg")
    return found, others


def list_images(folder: Path) -> Listing:
    """List the images of a folder and its subfolders, which are no classes; see ``list_classes``.

    Raises:
        UserError: the folder is missing, cannot be read, or holds no image.
    """
    _check_folder(folder)
    began = time.time_ns()
    images, others = _walk(folder, "", hidden=False)
    if not images:
        raise UserError(f"{folder} has no images")
    return _listing(folder, [], sorted(images), [len(images)], others, began, None)


def fingerprint(folder: Path) -> str:
    """Return the content fingerprint of a folder of ``<class>/<image>``, 64 hex digits.

    Names of files, their order and their times do not matter. Raises UserError as ``list_classes`` does.
    """
    return list_classes(folder).fingerprint


def content_fingerprint(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the fingerprint of images given as (class name, sha256 of the file), in any order: 64 hex digits."""
    lines = sorted(os.fsencode(f"{name}\0{sha256}\n") for name, sha256 in pairs)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def starts_as_image(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of an image."""
    if head.startswith(STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    if head[:2] == b"BM":  # two letters alone may begin any text
        return head[6:10] == bytes(4) and head[14:18] in {
            bytes((n, 0, 0, 0)) for n in (12, 16, 40, 52, 56, 64, 108, 124)
        }
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS


def not_an_image(name: str, head: Callable[[], bytes]) -> str:
    """Return why a file is passed over, by its name and, where that says nothing, its first 32 bytes; empty: it is not.

    The one rule for folders and archives.
    """
    last = name.rpartition("/")[2]
    if _is_hidden(last) or any(_is_hidden(f) or f in JUNK_FOLDERS for f in name.split("/")[1:-1]):
        return "hidden"
    if os.path.splitext(last)[1].lower() in USUAL:  # noqa: PTH122 (names of archives, too)
        return ""
    return "" if starts_as_image(head()) else "not_an_image: it does not begin as one"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in JUNK


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected one folder of images per class")


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise unreadable(folder, error) from error


def _walk(root: Path, prefix: str, *, hidden: bool) -> tuple[list[Row], list[Other]]:
    """Return the images below a folder and all other files; a folder that links lead to again is not entered twice."""
    images: list[Row] = []
    others: list[Other] = []
    seen: set[tuple[int, int]] = set()
    todo = [(prefix, hidden)]
    while todo:
        inside, hide = todo.pop()
        place = os.path.join(root, inside)  # noqa: PTH118
        status = os.stat(place)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(place):
            name = inside + entry.name
            if entry.is_dir():
                todo.append((f"{name}/", hide or entry.name.startswith(".") or entry.name in JUNK_FOLDERS))
            elif reason := "hidden" if hide else _reason(entry):
                others.append((name, reason))
            else:
                images.append((name, _stamp(entry)))
    return images, others


def _reason(entry: os.DirEntry[str]) -> str:
    name = entry.name
    if name[name.rfind(".") :].lower() in USUAL and name[0] != "." and entry.is_file():
        return ""  # as ``not_an_image`` says, but there may be 200,000
    if not entry.is_file() and not entry.is_symlink():
        return "special: no file but a device, pipe or socket"
    return not_an_image(name, lambda: read_file(entry.path, 32))


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        return stamp_of(entry.stat())
    except OSError as error:  # a link to a drive that is not there says nothing of the image
        raise unreadable(entry.path, error) from error


def _listing(
    folder: Path,
    classes: list[str],
    rows: list[Row],
    counts: list[int],
    others: list[Other],
    listed_at: int,
    cache_dir: Path | None,
) -> Listing:
    import numpy as np

    targets = np.repeat(np.arange(len(counts)), counts)
    stamps = np.array([stamp for _, stamp in rows], dtype=np.int64)
    return Listing(folder, classes, [name for name, _ in rows], targets, stamps, sorted(others), listed_at, cache_dir)


def _sha256(path: Path) -> bytes:
    return hashlib.sha256(read_file(path)).digest()
