"""Trials for the tests of sweeps that train nothing; and a sweep of them as a process that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from objrec.config import search_space as space
from objrec.config.load import load_config
from objrec.sweeps import board
from objrec.sweeps.plan import Grid, Sampled
from objrec.sweeps.sweeper import run_here
from objrec.sweeps.trial import TrialResult

IDENTITY = "of all these sweeps"


def score(overrides: Sequence[str]) -> float:
    """Best at a learning rate of 0.02."""
    rate = next(float(o.split("=")[1]) for o in overrides if o.startswith("train.learning_rate="))
    return 1 / (1 + abs(rate - 0.02))


def quick(overrides: Sequence[str], folder: Path) -> None:
    """End with a score; tell in ``ran`` beside the trials that this one was begun, and that it ended."""
    log = folder.parent / "ran"
    with log.open("a") as file:
        file.write(f"begun {folder.name}\n")
    time.sleep(float(os.environ.get("TRIAL_SECONDS", "0")))
    TrialResult(status="finished", metrics={"epoch": 0.0, "val/acc": score(overrides)}).save(folder)
    with log.open("a") as file:
        file.write(f"ended {folder.name}\n")


def fragile(overrides: Sequence[str], folder: Path) -> None:
    """Come to grief at some learning rates."""
    print("a trial's own words")
    worker = multiprocessing.get_context("fork").Process(target=print, args=("its worker's words",))
    worker.start()  # as a data loader does
    worker.join()
    if "train.learning_rate=0.1" in overrides:
        os.kill(os.getpid(), signal.SIGKILL)
    if "train.learning_rate=0.2" in overrides:
        raise RuntimeError("broken")
    if "train.learning_rate=0.3" in overrides:
        time.sleep(60)
    quick(overrides, folder)


def sweep(folder: Path, overrides: Sequence[str], *, job: object = quick) -> int:
    """Run a sweep of trials that train nothing; returns its exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    fixed, varied = space.read_space({}, overrides)
    config = load_config(fixed)
    plan = Grid if config.sweep.algorithm == "grid" else Sampled
    trials = plan(folder, config, fixed=fixed, space=varied, identity=IDENTITY)
    print(trials.said, flush=True)
    run_here(
        trials, config, folder, job=job, preload=("objrec.sweeps.sweeper",)
    )  # what this module takes long to import
    return board.finish(folder, config, list(varied), fixed, IDENTITY)


if __name__ == "__main__":
    sys.exit(sweep(Path(sys.argv[1]), sys.argv[2:]))
