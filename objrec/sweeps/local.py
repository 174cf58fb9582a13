"""Trials on this machine, each in a process of its own: one that is killed, or breaks down, takes no other with it.

A server process imports the training's libraries once, and every trial is forked from it: a trial begins in a moment
instead of after the ten seconds that the imports take.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.runner.display import Display
from objrec.sweeps.trial import Trial, TrialResult
from objrec.sweeps.trial_run import run_trial
from objrec.system.cores import available_cores
from objrec.system.progress import CHANNEL

PRELOADED = ("objrec.training.fit",)
GRACE = 30  # seconds that a trial has to save itself when it is asked to end
# (overrides, trial folder): trains there and leaves result.json
Job = Callable[[Sequence[str], Path], object]


def train_job(overrides: Sequence[str], folder: Path) -> None:
    """Compose the configuration and train."""
    try:
        config: Any = load_config(overrides, effects=False)  # another trial may give a setting its effect
    except UserError as error:
        config = error
    run_trial(config, overrides, folder)


class Lanes:
    """Run trials side by side.

    Args:
        lanes: how many at once. The processor cores, and the GPUs where there are some, are shared out among them.
        timeout: seconds after which a trial is stopped; None: never.
        job: what a trial does, a function that can be imported.
        preload: modules that are imported once for all trials.
    """

    def __init__(
        self,
        lanes: int,
        *,
        timeout: float | None,
        display: Display,
        job: Job = train_job,
        preload: Sequence[str] = PRELOADED,
    ) -> None:
        self.lanes, self.timeout, self.display, self.job = lanes, timeout, display, job
        self.threads = max(1, available_cores() // lanes)
        self._running: set[Any] = set()
        self._stopping = threading.Event()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def run(self, next_trial: Callable[[], Trial | None], tell: Callable[[Trial, TrialResult], None]) -> None:
        """Run what ``next_trial`` gives until it gives None; both functions are called by one thread at a time.

        Interrupted, it lets the running trials save themselves and leaves them without a result.
        """
        lock = threading.Lock()
        faults: list[BaseException] = []

        def lane(index: int) -> None:
            try:
                while not self._stopping.is_set():
                    with lock:
                        trial = next_trial()
                    if trial is None:
                        return
                    result = self._run_one(trial, index)
                    if result is not None:
                        with lock:
                            tell(trial, result)
            except BaseException as fault:
                faults.append(fault)
                self._stopping.set()

        threads = [threading.Thread(target=lane, args=(i,)) for i in range(self.lanes)]
        for thread in threads:
            thread.start()
        try:
            while any(t.is_alive() for t in threads):
                for thread in threads:
                    thread.join(0.1)  # a join without a limit would keep Ctrl-C waiting
        finally:
            self._stop()
            for thread in threads:
                thread.join()
        if faults:
            raise faults[0]

    def _run_one(self, trial: Trial, lane: int) -> TrialResult | None:
        """Run a trial to its end; None where it was interrupted and is to be carried on another time."""
        began = time.monotonic()
        self.display.start(trial.name, " ".join(trial.words))
        ours, theirs = self._context.Pipe()
        arguments = (self.job, trial.overrides, trial.folder, theirs, self.threads, lane)
        process = self._context.Process(target=_child, args=arguments)  # no daemon: these may have no children
        process.start()
        theirs.close()
        self._running.add(process)
        try:
            if self._stopping.is_set():  # too late to be among those that were asked to end
                _end(process)
            in_time = self._listen(trial.name, ours, began)
            if not in_time:
                _end(process)
            process.join()
        finally:
            self._running.discard(process)
            ours.close()
        result = TrialResult.load(trial.folder)
        if result is None and not self._stopping.is_set():
            status = process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else "ended without a result"
            reason = how if in_time else f"took longer than sweep.trial_timeout={self.timeout:g} s"
            result = TrialResult(status="failed", seconds=round(time.monotonic() - began, 3), reason=reason)
            result.save(trial.folder)
        return result

    def _listen(self, name: str, channel: Connection, began: float) -> bool:
        """Show a trial's progress until its process ends; False where it takes too long."""
        rest = b""
        while True:
            left = None if self.timeout is None else self.timeout - (time.monotonic() - began)
            if left is not None and left <= 0:
                return False
            if not wait([channel], left):
                continue
            try:
                data = os.read(channel.fileno(), 65536)
            except ConnectionResetError:
                return True
            if not data:
                return True
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                with suppress(ValueError, KeyError):
                    said = json.loads(line)
                    self.display.advance(name, said["done"], said["total"], said["text"])

    def _stop(self) -> None:
        self._stopping.set()
        for process in list(self._running):
            _end(process)


def _end(process: Any) -> None:
    process.terminate()
    process.join(GRACE)
    if process.is_alive():
        process.kill()


def _child(job: Job, overrides: Sequence[str], folder: Path, channel: Connection, threads: int, lane: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep, which then ends us in order
    threading.Thread(target=_die_with_parent, args=(channel,), daemon=True).start()
    os.environ[CHANNEL] = str(channel.fileno())
    _take_share(threads, lane)
    with (folder / "train.log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    job(overrides, folder)


def _die_with_parent(channel: Connection) -> None:
    """The sweep never writes: what ends the read is its end."""
    os.read(channel.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _take_share(threads: int, lane: int) -> None:
    """Use this lane's cores and GPU only: two trainings with all threads each starve one another."""
    threads = min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of processes that the trial starts
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    if len(devices := gpus()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[lane % len(devices)]


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, without asking their driver."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [d for d in visible.split(",") if d.strip()]
    return sorted(p.name.removeprefix("nvidia") for p in Path("/dev").glob("nvidia[0-9]*"))
