"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import sys

PARENT = "OBJREC_PARENT_PID"
ORDER = "OBJREC_STEP_ORDER"  # what the runner starts a step for: its key, and the digests of its inputs


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to end this process when its parent ends (Linux; elsewhere the held lock has to do).

    Args:
        parent: its process number; None: the one that the environment names, if any.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    expected = os.environ.get(PARENT) if parent is None else parent
    if expected is not None and os.getppid() != int(expected):
        os._exit(1)  # the parent ended before we asked
