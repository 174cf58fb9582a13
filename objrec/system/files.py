"""Files and folders on disk: written so that a kill or a full disk leaves nothing wrong, hashed, locked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Replace a file: readers see the old content or the new one, also after a crash or on a full disk.

    Args:
        mode: permissions, as 0o600 where secrets or private images are in it; None: what the umask leaves of 0o666.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(path: Path, *, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of ``path`` when the block ends well; see ``write_atomically``."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:60]}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        permit(Path(name), mode)
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def permit(path: Path, mode: int | None = None) -> None:
    """Give a new file or folder its permissions, whatever the library that made it chose.

    Args:
        mode: 0o600, for a folder 0o700, where secrets or private images are in it; None: what the umask leaves.
    """
    if mode is None:
        mode = (0o777 if path.is_dir() else 0o666) & ~_umask()
    path.chmod(mode)


def replace_file(path: Path, write: Callable[[Path], object], *, suffix: str | None = None) -> None:
    """Let ``write`` make a file beside ``path`` under a name with the same suffix, then rename it to ``path``."""
    beside = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix if suffix is None else suffix}")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, data: Any, *, mode: int | None = None) -> None:
    """Write indented JSON atomically; names that are no valid Unicode are escaped."""
    try:
        content = json.dumps(data, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        content = json.dumps(data, indent=2).encode()
    write_atomically(path, content + b"\n", mode=mode)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where there is no such file. Raises ValueError for other content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """Return the hash of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:  # noqa: PTH123 (a hot path)
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, busy: Callable[[], object] | None = None, required: bool = True) -> Iterator[int]:
    """Hold the lock that the file ``path`` stands for; yields its descriptor.

    The kernel frees it when its last holder ends, killed or not. A child process that inherits the descriptor holds it
    too.

    Args:
        busy: called once when somebody else holds the lock, before waiting; what it raises ends the attempt.
        required: False: go on without it on a network file system that has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            if required:
                raise
        yield file.fileno()


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it; Linux shows it without."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
