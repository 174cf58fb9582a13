"""``python -m objrec.ingest.examiner``: a process that examines images and writes the good ones.

What decodes bytes from outside runs here and not where the downloads are: bytes that crash a decoder end this process
alone, and several of them keep several cores busy. ``objrec.ingest.pool`` starts it and says what it reads and writes.

Standard input: a line of JSON with the fields of ``Setup``, then for each image a line of JSON ``[way, name, size]``
and ``size`` bytes. ``way`` is ``store``, with the URL as name, or ``target``, with the class. Standard output: an empty
line when ready, then a line of JSON for each image in turn: ``{"image": fields}``, ``{"status", "reason"}`` or
``{"fault": traceback}``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objrec.images.decode import ImageError
from objrec.ingest.examine import examine
from objrec.ingest.selection import file_of
from objrec.ingest.store import WebStore
from objrec.system.processes import die_with_parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What holds for all images of a run.

    Attributes:
        target: folder of the data set.
        store: folder of the store, with ``limits`` as there.
    """

    max_pixels: int
    min_size: int
    target: str
    store: str
    limits: str


class Examiner:
    """Examines images and puts the good ones where they belong."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def examine(self, way: str, name: str, data: bytes) -> dict[str, Any]:
        """Return what standard output says of an image."""
        try:
            image = examine(data, max_pixels=self._setup.max_pixels, min_size=self._setup.min_size)
        except ImageError as error:
            if way == "store":
                self._store.record(name, status=error.status, reason=error.reason)
            return {"status": error.status, "reason": error.reason}
        if way == "store":
            # The row is first: an image that is there whole is known, whenever this process is killed.
            self._store.record(name, image=image)
            self._store.write(image.sha256, data)
        else:
            Path(self._setup.target, file_of(name, image)).write_bytes(data)
        return {"image": asdict(image)}

    @functools.cached_property
    def _store(self) -> WebStore:
        """Opened with the first download: by then the parent has made it."""
        return WebStore(Path(self._setup.store), limits=self._setup.limits)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is ours
    die_with_parent()
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    with open(0, "rb", buffering=1 << 18) as jobs:
        examiner = Examiner(Setup(**json.loads(jobs.readline())))
        os.write(answers, b"\n")
        while line := jobs.readline():
            way, name, size = json.loads(line)
            try:
                answer = examiner.examine(way, name, jobs.read(size))
            except Exception:
                answer = {"fault": traceback.format_exc()}
            os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
