"""How the examiners of a test are set up, and one whose decoder misbehaves on command."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import fields
from pathlib import Path

from objrec.images.budget import MemoryShare
from objrec.ingest.examiner import Examiner, Job, Verdict
from objrec.system.pool import Alone


class FaultyExaminer(Examiner):
    """No image is known that ends the real one."""

    def __call__(self, job: Job, alone: Alone) -> Verdict:
        if job[2] == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if job[2] == b"hang":
            time.sleep(600)
        if job[2] == b"defect":
            raise KeyError("ours")
        return super().__call__(job, alone)


def examiner(folder: Path, *, large: int = 10**9) -> Examiner:
    (folder / "out" / "cat").mkdir(parents=True, exist_ok=True)
    share = MemoryShare(each=10**7, most=large)
    target, store = str(folder / "out"), str(folder / "store")
    return Examiner(max_pixels=10**7, min_size=8, target=target, store=store, limits="a", share=share)


def faulty(folder: Path) -> FaultyExaminer:
    made = examiner(folder)
    return FaultyExaminer(**{f.name: getattr(made, f.name) for f in fields(made)})
