"""Ingest from a source that has the bytes itself."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from objrec.images.decode import ImageError
from objrec.ingest.examine import examine
from objrec.ingest.selection import Outcome, Selection, file_of
from objrec.sources.base import Candidate, LocalSource


def collect(
    source: LocalSource,
    selection: Selection,
    class_names: Sequence[str],
    target: Path,
    *,
    max_pixels: int,
    min_size: int,
    max_bytes: int,
) -> None:
    """Add outcomes to ``selection`` until no class misses any or the source has no more.

    Good pictures are written below ``target``, also some that turn out not to be kept: the caller removes those.
    """

    def acquire(candidate: Candidate) -> Outcome:
        try:
            data = source.read(candidate, max_bytes=max_bytes)
            picture = examine(data, max_pixels=max_pixels, min_size=min_size)
        except ImageError as error:
            return Outcome(candidate=candidate, status=error.status, reason=error.reason)
        (target / file_of(candidate.class_name, picture)).write_bytes(data)
        return Outcome(candidate=candidate, picture=picture)

    offers = {name: source.candidates(name) for name in class_names}
    for name in class_names:
        (target / name).mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and reading release the interpreter lock
        open_classes = list(class_names)
        while open_classes:
            for name in list(open_classes):
                batch = list(itertools.islice(offers[name], selection.missing(name)))
                for outcome in pool.map(acquire, batch, chunksize=1):
                    selection.add(outcome)
                if not batch and selection.missing(name):
                    open_classes.remove(name)
            open_classes = [n for n in open_classes if selection.missing(n)]
