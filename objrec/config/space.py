"""A full disk, said in a line: which, and what of ours could be freed there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from objrec.config.errors import UserError

if TYPE_CHECKING:
    from objrec.config.schema import Config

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
WORDS: Final = ("no space left on device", "disk is full", "disk quota exceeded")  # of libraries with their own errors
NEARLY: Final = 1 << 16  # bytes that are no space
PATIENCE: Final = 2.0  # seconds for adding up sizes
OURS: Final = (
    ("cache_dir", "the cache", "rm -r {}; what is needed is made again"),
    ("runs_dir", "runs", "rm -r those in {} that are no longer needed"),
    ("registry_dir", "models", "python -m objrec.registry gc registry_dir={}, which keeps those in use"),
)
_places: dict[str, Path] = {}
_all_places: set[Path] = set()  # a command may compose several configurations, as for the steps of a job


def remember_places(config: Config) -> None:
    """Know where this command writes, for a full disk of which the error names no file."""
    for name in ("cache_dir", "runs_dir", "registry_dir", "run_dir"):
        if (value := getattr(config, name)) is not None:
            _places[name] = Path(value).absolute()
            _all_places.add(_places[name])


def why_full(error: BaseException, *places: Path, certain: bool = False) -> str | None:
    """Return the line for an error that a full disk caused, or None for another error.

    Args:
        places: what was being written, where that is known.
        certain: only where the disk is still full: standard output may be what was.
    """
    full = next((e for e in _chain(error) if _is_full(e, places)), None)
    if full is None:
        return None
    targets = (getattr(full, "filename2", None), getattr(full, "filename", None))  # the first of a copy is what is read
    named = [Path(n) for n in targets if isinstance(n, str)]
    place = _existing(named[0] if named else _fullest(places))
    if certain and not is_full(place):
        return None
    mount = place
    while not mount.is_mount() and mount != mount.parent:
        mount = mount.parent
    kind = "the disk quota is used up" if getattr(full, "errno", None) == errno.EDQUOT else "no space left"
    freed = [said for name, what, how in OURS if (said := _freed(name, what, how, place))]
    cure = f"Could be freed there: {'; '.join(freed)}" if freed else "Nothing of objrec's that could be freed is there"
    return f"{kind} on {mount}. {cure}. Then run again"


@contextlib.contextmanager
def full_disk_said(*places: Path) -> Iterator[None]:
    """Raise UserError in the place of an error that a full disk caused."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (message := why_full(error, *places)) is None:
            raise
        raise UserError(message) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, those in its group, and what caused it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        error = waiting.pop(0)
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            yield error
            waiting += getattr(error, "exceptions", ())
            waiting += [error.__cause__, error.__context__]


def _is_full(error: BaseException, places: tuple[Path, ...]) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    text = str(error).lower()
    if any(words in text for words in WORDS):
        return True
    # SQLite cannot always say why it cannot write, nor can torch's writer
    unsaid = type(error).__name__ == "OperationalError" or "pytorchstreamwriter" in text
    return unsaid and is_full(_fullest(places))


def _fullest(places: tuple[Path, ...]) -> Path:
    return min((*places, *_all_places, Path.cwd(), Path(tempfile.gettempdir())), key=_free)


def is_full(path: Path) -> bool:
    """Whether the file system of a file or folder, there or to be made, has no space."""
    return _free(path) < NEARLY


def _free(path: Path) -> int:
    status = os.statvfs(_existing(path))
    return status.f_bavail * status.f_frsize


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _freed(name: str, what: str, how: str, full: Path) -> str:
    folder = _places.get(name)
    if folder is None or not folder.is_dir() or folder.stat().st_dev != full.stat().st_dev:
        return ""
    size, deadline, more = 0, time.monotonic() + PATIENCE, ""
    for place, _, names in os.walk(folder):
        for file in names:
            with contextlib.suppress(OSError):
                size += Path(place, file).lstat().st_blocks * 512
        if time.monotonic() > deadline:
            more = "more than "
            break
    return f"{what}, {more}{size / 1e6:.1f} MB ({how.format(folder)})" if size else ""
