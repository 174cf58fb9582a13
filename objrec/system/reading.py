"""Reading what belongs to the user: a file that cannot be read now says nothing about what is in it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final

from objrec.config.errors import UserError

WAITS: Final = (0.1, 0.4)  # seconds before another try
PASSING: Final = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY, errno.EHOSTDOWN})
SETTLED: Final = 50_000_000  # ns: a file changed later than that before it was looked at may change again unseen
Stamp = tuple[int, int, int, int]  # size in bytes, mtime and ctime in ns, inode


def read_file(path: str | Path, limit: int = -1) -> bytes:
    """Return the bytes of a file, or the first ``limit``. What may pass is tried again.

    Raises:
        UserError: it cannot be read, for a reason outside the file: a permission, a drive, somebody who moved it.
    """
    for wait in (*WAITS, None):
        try:
            with open(path, "rb", buffering=0 if limit >= 0 else -1) as file:  # noqa: PTH123 (a hot path)
                return file.read(limit)
        except OSError as error:
            if wait is None or error.errno not in PASSING:
                raise unreadable(path, error) from error
            time.sleep(wait)
    raise AssertionError


def unreadable(path: str | Path, error: OSError) -> UserError:
    """The error for a file or folder that cannot be read, with the cure."""
    cure = "Is its drive still there? Run again"
    if error.errno in (errno.EACCES, errno.EPERM):
        cure = "Make it readable (chmod u+r), or move it away"
    elif error.errno == errno.ENOENT:
        cure = "It is a link to nothing, or was moved while it was needed: remove the link, or run again"
    return UserError(f"{shown(path)} cannot be read: {error.strerror or error}. {cure}")


def stamp_of(status: os.stat_result) -> Stamp:
    """What no change of a file or of its place leaves alone, in a form to remember.

    ``mv`` and ``cp -p`` keep size and mtime; the first brings another inode to a name, the second another ctime.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (1 << 63) - 1


def shown(name: str | Path) -> str:
    """A name for people: one that is not UTF-8 is read as Windows-1252, or Latin-1, where such names come from."""
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raw = os.fsencode(text)
        try:
            return raw.decode("cp1252")
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    return text
