"""What was fetched before: images by content, outcomes by URL, answers of services, and what each source offered.

The store outlives runs, so that a killed, repeated or changed ingest fetches nothing twice. It may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from objrec.ingest.examine import ExaminedImage
from objrec.ingest.selection import CandidateOutcome
from objrec.sources.base import Candidate

# transient: 0, or when (in seconds since 1970) what may pass was found; limits: the settings that it holds for
SCHEMA = """
create table if not exists outcomes (url text primary key, status text, reason text, transient int, limits text,
    sha256 text, size int, width int, height int, extension text, rows text, columns text) without rowid;
create table if not exists pages (key text primary key, body text) without rowid;
create table if not exists offers (source text, class text, url text, place integer primary key, candidate text);
create unique index if not exists offered on offers (source, class, url);
"""
VERSION = 1
LIMITED: Final = ("too_small", "too_large", "unsupported", "corrupt")  # statuses that other limits may change
LASTING: Final = ("ok", *LIMITED, "http_404", "http_410")  # all others may pass, or change with the rules of access
HOLDS: Final = 3600.0  # seconds that what may pass is remembered


class WebStore:
    """A folder with an SQLite file and the images. Safe against SIGKILL at any moment, and for several processes.

    The outcome of an image is to be recorded before the image is written, so that one which is there whole is never
    fetched again; and an image is checked against its hash before it is used. Methods may be called from any thread.

    Args:
        folder: made when absent.
        limits: a text that changes with any limit on images; refusals under other limits do not count.
        access: a text that changes with the rules by which URLs are asked for; likewise for what came of those.
    """

    def __init__(self, folder: Path, *, limits: str, access: str = "") -> None:
        self._objects = folder / "objects"
        self._limits, self._access = limits, access
        self._objects.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        path = folder / f"index-{VERSION}.sqlite"
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=off")  # a lost row costs one download, a lost image is noticed
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def path(self, sha256: str) -> Path:
        return self._objects / sha256[:2] / sha256

    def write(self, sha256: str, data: bytes) -> None:
        """Keep an image.

        It is written under its final name at once, which is cheaper than a rename: a file that was not finished is not
        what its name says, and ``has`` notices. A file that is there is never written to, for data sets link to it.
        """
        path = self.path(sha256)
        while True:
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                if self.has(sha256):
                    return
            else:
                try:
                    with os.fdopen(handle, "wb") as file:  # buffered: writes all of it or raises
                        file.write(data)
                except OSError:
                    path.unlink(missing_ok=True)  # half an image is of no use to a disk that is full
                    raise
                return

    def has(self, sha256: str) -> bool:
        """Whether the image is there and undamaged; a damaged one is removed."""
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False
        if not whole:
            path.unlink(missing_ok=True)
        return whole

    def place(self, sha256: str, target: Path) -> None:
        """Put an image at ``target``, as a hard link where that works: it takes no room twice."""
        path = self.path(sha256)
        try:
            target.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target)

    def forget(self, sha256: str) -> None:
        """Delete an image that was taken down."""
        self.path(sha256).unlink(missing_ok=True)

    def record(
        self,
        url: str,
        *,
        image: ExaminedImage | None = None,
        status: str = "ok",
        reason: str | None = None,
        transient: bool = False,
    ) -> None:
        """Remember what came of a URL.

        Args:
            transient: it may pass, whatever the status.
        """
        p = image
        since = 0 if status in LASTING and not transient else int(time.time())
        values = (
            (p.sha256, p.size, p.width, p.height, p.extension, f"{p.rows:x}", f"{p.columns:x}") if p else (None,) * 7
        )
        self._execute(
            "insert or replace into outcomes values (?,?,?,?,?,?,?,?,?,?,?,?)",
            (url, status, reason, since, self._settings_for(status), *values),
        )

    def recall(self, candidate: Candidate, *, retry_transient: bool) -> CandidateOutcome | None:
        """Return what is known of a candidate's URL, or None where it must be fetched.

        That is so for what other settings made, and for what may have passed.

        Args:
            retry_transient: do not wait for an hour until then.
        """
        rows = self._execute("select * from outcomes where url = ?", (candidate.url,))
        if not rows:
            return None
        _, status, reason, since, settings, sha256, size, width, height, extension, across, down = rows[0]
        if (needed := self._settings_for(status)) is not None and settings != needed:
            return None
        may_pass = since or status not in LASTING
        if may_pass and (retry_transient or not 0 <= time.time() - since < HOLDS):
            return None
        if sha256 is None:
            return CandidateOutcome(candidate=candidate, status=status, reason=reason)
        image = ExaminedImage(
            sha256=sha256,
            size=size,
            width=width,
            height=height,
            extension=extension,
            rows=int(across, 16),
            columns=int(down, 16),
        )
        return CandidateOutcome(candidate=candidate, image=image, status=status, reason=reason)

    def _settings_for(self, status: str) -> str | None:
        """The settings under which a status holds; None where it holds under any."""
        if status in LIMITED:
            return self._limits
        return None if status in LASTING else self._access

    def page(self, key: str) -> Any:
        """Return a service's earlier answer, or None."""
        rows = self._execute("select body from pages where key = ?", (key,))
        return json.loads(rows[0][0]) if rows else None

    def keep_page(self, key: str, body: Any) -> None:
        self._execute("insert or replace into pages values (?,?)", (key, json.dumps(body)))

    def offered(self, source: str, class_name: str) -> Iterator[Candidate]:
        """Yield what a source has offered for a class, in the order of that time."""
        query = "select candidate from offers where source = ? and class = ? order by place"
        for (text,) in self._execute(query, (source, class_name)):
            yield Candidate(**json.loads(text))

    def offer(self, source: str, candidate: Candidate) -> None:
        """Remember an offer; the first of a URL counts."""
        self._execute(
            "insert or ignore into offers (source, class, url, candidate) values (?,?,?,?)",
            (source, candidate.class_name, candidate.url, json.dumps(asdict(candidate))),
        )

    def _execute(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()
