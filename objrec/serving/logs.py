"""Structured logs: a JSON object a line."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

LOGGER = "objrec.serving"
MAX_BYTES = 10_000_000
FLUSH_SECONDS = 0.25
MAX_LINES = 10_000  # kept while the file cannot be written; the oldest go first
ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)  # json.dumps makes one for every call with options
logging.getLogger(LOGGER).addHandler(logging.NullHandler())  # until set_up, errors are reported where they are raised


class JsonFormatter(logging.Formatter):
    """Writes time, level, message and the fields given as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return ENCODER.encode(entry)


class FileHandler(logging.Handler):
    """Gathers lines and writes them four times a second; a full file becomes ``<name>.1``.

    The library's rotating handler makes five system calls a line, and each gives Python's lock to the threads that
    work on images and waits to get it back: half a millisecond of every request. Behind a ``QueueHandler`` it would
    make them in another thread, which competes for the same lock; and on a full disk it writes half lines, and loses
    what comes until there is room again.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        super().__init__()
        self._path, self._max_bytes = path, max_bytes
        self._lines: list[str] = []
        threading.Thread(target=self._write_now_and_then, name="log", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))
        if record.levelno >= logging.ERROR:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; what cannot be written now is kept for the next time."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            try:
                self._write(lines)
            except OSError:  # a full disk, or no file descriptor left: the service goes on
                self._lines = lines[-MAX_LINES:]
        finally:
            self.release()

    def _write(self, lines: list[str]) -> None:
        if not lines or not self._path.parent.is_dir():
            return
        if self._path.exists() and self._path.stat().st_size > self._max_bytes:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        data = ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")
        with self._path.open("ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:  # half a line would stay, and all be written again
                file.truncate(size)
                raise

    def _write_now_and_then(self) -> None:
        pause = threading.Event()
        while not pause.wait(FLUSH_SECONDS):
            self.flush()


def set_up(path: Path | None) -> None:
    """Log to ``path``, which is kept from growing without end, or to stderr."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if path is None else FileHandler(path)
    handler.setFormatter(JsonFormatter())
    # what is looked up for every line and never written, as the library's chapter on optimisation has it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for name, level in ((LOGGER, logging.INFO), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
