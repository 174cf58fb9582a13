"""Count the files of objrec that one request passes, and those that ``config`` passes in a training.

    python -m benchmarks.hops request MODEL_DIR IMAGE
    python -m benchmarks.hops training train_dir=DIR valid_dir=DIR

Run it from the root of any version: it traces the objrec folder of the working directory.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = str(Path.cwd() / "objrec") + os.sep


class Trace:
    """Files that were entered, and calls from one file to another that hand over a ``Config``."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.config_files: set[str] = set()
        self.handovers: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT) or code.co_name == "<module>":
            return
        name = code.co_filename.removeprefix(ROOT)
        self.files.add(name)
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(type(frame.f_locals.get(a)).__name__ == "Config" for a in arguments):
            self.config_files.add(name)
            caller = frame.f_back.f_code.co_filename if frame.f_back else ""
            if caller.startswith(ROOT) and caller != code.co_filename:
                self.handovers.add((caller.removeprefix(ROOT), f"{name}:{code.co_name}"))

    def start(self) -> None:
        threading.setprofile(self)
        sys.setprofile(self)


def request(trace: Trace, model_dir: str, image: str) -> None:
    """Serve a model and trace the second of two requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = Path(image).read_bytes()

    def ask() -> None:
        url = f"http://127.0.0.1:{port}/score"
        for warm in (True, False):
            trace.files.clear()
            for _ in range(600):
                try:
                    call = urllib.request.Request(url, body, {"Content-Type": "image/jpeg"})
                    with urllib.request.urlopen(call, timeout=30) as answer:
                        answer.read()
                    break
                except OSError:
                    time.sleep(0.2)
            time.sleep(0.0 if warm else 0.2)
        show("files passed by one request", sorted(trace.files))
        os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask, daemon=True)
    client.start()
    trace.start()
    sys.argv = ["serve", f"model_dir={model_dir}", f"serve.port={port}", "serve.host=127.0.0.1"]
    runpy.run_module("objrec.serve", run_name="__main__")


def training(trace: Trace, overrides: list[str]) -> None:
    """Trace ``objrec.train debug=fast_dev_run``."""
    sys.argv = ["train", "debug=fast_dev_run", *overrides]
    trace.start()
    try:
        runpy.run_module("objrec.train", run_name="__main__")
    finally:
        sys.setprofile(None)
        show("files that are handed the config", sorted(trace.config_files))
        show("calls from file to file that hand it over", sorted(f"{a} -> {b}" for a, b in trace.handovers))


def show(what: str, names: list[str]) -> None:
    print(f"{what}: {len(names)}", *(f"  {n}" for n in names), sep="\n", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    if sys.argv[1] == "request":
        request(Trace(), *sys.argv[2:4])
    else:
        training(Trace(), sys.argv[2:])
