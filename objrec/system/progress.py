"""Progress of steps: a step reports numbers, the runner shows them; without a runner they go nowhere."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

CHANNEL = "OBJREC_PROGRESS_FD"
_last = 0.0


def report(done: int, total: int | None, text: str = "") -> None:
    """Tell the runner how far this step is. Cheap enough to call for every image: at most 20 a second are sent."""
    global _last
    fd = os.environ.get(CHANNEL)
    now = time.monotonic()
    if fd is None or (now - _last < 0.05 and done != total):
        return
    _last = now
    _send(fd, {"done": done, "total": total, "text": text})


def note(text: str) -> None:
    """Tell the person at the terminal something that stays: through the runner where there is one."""
    print(text, file=sys.stderr, flush=True)
    if (fd := os.environ.get(CHANNEL)) is not None:
        _send(fd, {"note": text})


def _send(fd: str, message: dict[str, Any]) -> None:
    try:
        os.write(int(fd), (json.dumps(message) + "\n").encode())
    except (OSError, ValueError):
        os.environ.pop(CHANNEL, None)  # the runner is gone; the lock's owner decides what becomes of us
