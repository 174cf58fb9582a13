"""Decoded images in one file, mapped into memory: built once, found again by content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

import objrec.images
from objrec.config.errors import UserError
from objrec.images.preprocessing import Preprocessing
from objrec.system.files import lock

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[range], Pixels]  # indices -> uint8 (N, size, size, 3)

CHUNK_BYTES = 64_000_000  # decoded and written at once
MAPPED_BYTES = 64_000_000  # held before the pages are let go of again
AROUND_BYTES = 2_000_000  # that the system may map around an image


class DecodedStore:
    """The pixels of a store, uint8 (N, size, size, 3).

    Pages that were read stay in the system's cache and not in this process: what it holds is bounded by a constant,
    however large the file is.
    """

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.shape = (count, size, size, 3)
        self._path = folder / "pixels.u8"
        self._open()

    def _open(self) -> None:
        with self._path.open("rb") as file:
            # private and writable, though nothing writes: torch takes no array that is read-only
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._pixels = np.frombuffer(self._map, np.uint8).reshape(self.shape)
        self._read = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape, "_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Pixels:
        found: Pixels = self._pixels[index]
        self._read += found.nbytes + AROUND_BYTES
        if self._read > MAPPED_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)  # a page in use elsewhere is read in again: nothing is lost
            self._read = 0
        return found


def store_key(content: str, preprocessing: Preprocessing) -> str:
    """What makes two stores the same: images and their order, preprocessing, and the code that does it."""
    made = f"{preprocessing.size} {preprocessing.interpolation} {preprocessing.crop_pct}"
    digest = hashlib.sha256(f"{content} {made} {PIL.__version__}".encode())
    for path in sorted(Path(*objrec.images.__path__).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def open_store(root: Path, key: str, *, count: int, size: int, decode: Decode, limit: int) -> DecodedStore:
    """Return the store ``key`` under ``root``, built when it is not there.

    It is written beside its place, flushed to the disk and renamed, so a kill leaves nothing that is accepted. Of two
    builders at once one builds and the other waits and takes what it built; where locks are not to be had both build,
    and one's is kept.

    Args:
        decode: decodes the images of a range.
        limit: bytes that all stores under ``root`` may take; the least recently used are deleted.

    Raises:
        UserError: the disk is full, or an image cannot be decoded.
    """
    place = root / key
    if not _complete(place, count, size):
        root.mkdir(parents=True, exist_ok=True)
        with lock(root / f"{key}.lock", required=False):
            if not _complete(place, count, size):
                _build(place, count=count, size=size, decode=decode, limit=limit)
    with contextlib.suppress(OSError):  # a cache that may only be read serves too
        os.utime(place / "store.json")
    return DecodedStore(place, count, size)


def _complete(place: Path, count: int, size: int) -> bool:
    try:
        shape = json.loads((place / "store.json").read_text())["shape"]
        return shape == [count, size, size, 3] and (place / "pixels.u8").stat().st_size == count * size * size * 3
    except (OSError, ValueError, KeyError):
        return False


def _build(place: Path, *, count: int, size: int, decode: Decode, limit: int) -> None:
    total = count * size * size * 3
    for left in place.parent.glob(f".{place.name}.*.partial"):  # of a builder that was killed: we hold its lock
        shutil.rmtree(left, ignore_errors=True)
    _make_room(place.parent, limit - total)
    partial = place.parent / f".{place.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        with (partial / "pixels.u8").open("wb") as file:
            step = max(1, CHUNK_BYTES // (size * size * 3))
            for start in range(0, count, step):
                file.write(decode(range(start, min(start + step, count))).data)
            file.flush()
            os.fsync(file.fileno())
        (partial / "store.json").write_text(json.dumps({"shape": [count, size, size, 3]}))
        if place.exists():  # damaged, or it would have been taken
            place.rename(partial / "damaged")
        partial.rename(place)
        shutil.rmtree(place / "damaged", ignore_errors=True)
    except OSError as error:
        if not _complete(place, count, size):
            raise UserError(
                f"decoded images ({total / 1e9:.1f} GB) cannot be written to {place.parent}: {error.strerror}. "
                "Set cache_dir to a larger disk, or datamodule.cache=off"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_room(root: Path, limit: int) -> None:
    """Remove the stores that were not used for longest until the others take at most ``limit`` bytes."""
    stores = []
    for mark in root.glob("*/store.json"):
        with contextlib.suppress(OSError):
            stores.append((mark.stat().st_mtime_ns, (mark.parent / "pixels.u8").stat().st_size, mark.parent))
    kept = 0
    for _, size, folder in sorted(stores, reverse=True):
        kept += size
        if kept > limit:
            shutil.rmtree(folder, ignore_errors=True)  # who has it mapped keeps it until the end
