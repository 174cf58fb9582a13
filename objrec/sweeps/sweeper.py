"""``-m``: Hydra's front end, our own loop. A launcher of Hydra's may start the trials; without one ``Lanes`` does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from objrec.config import search_space as space
from objrec.config.compose import config_dir
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.config.search_space import Dimension
from objrec.images.image_folder import fingerprint
from objrec.runner.cache import StepCache
from objrec.runner.runner import forget_run
from objrec.runner.train import data_dirs
from objrec.steps.base import leading_to, lookup
from objrec.steps.keys import settings_read
from objrec.sweeps import board
from objrec.sweeps.local import Lanes, gpus
from objrec.sweeps.plan import Grid, Plan, Sampled
from objrec.sweeps.trial import Trial, TrialResult
from objrec.system.cores import available_cores
from objrec.system.files import lock
from objrec.system.outputs import claim

OWN = ("run_dir", "force")  # overrides that steer a sweep and mean nothing to a trial
ATTEMPTS = 2  # of a trial in a launcher whose workers are killed


def run_sweep(params: Mapping[str, Any], arguments: Sequence[str], hydra: Any, make_launcher: Callable[[], Any]) -> int:
    """Run the trials of a sweep that Hydra was asked for; returns the exit status: 0, or 1 where some failed.

    Args:
        params: what the sweep's file varies; the command line wins over it.
        arguments: the overrides, which were tried on the configuration before Hydra began.
        hydra: the ``hydra`` node of the configuration.
        make_launcher: returns the launcher of Hydra's that is configured.

    Raises:
        UserError: what a sweep on this machine cannot do.
    """
    folder = Path(hydra.sweep.dir)
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    flags = [f"--config-dir={p}" for p in folders if p.resolve() != Path(config_dir()).resolve()]
    fixed, varied = space.read_space(params, [*flags, *arguments])
    config = load_config(fixed, effects=False)
    fixed = [o for o in fixed if o.split("=")[0] not in OWN]
    _check(config, varied)
    launcher = None if hydra.launcher._target_.endswith("BasicLauncher") else make_launcher()
    claim(folder, "run_dir")
    with _locked(folder):
        try:
            data = _build_data(config, fixed, varied, folder)
        except UserError:
            if config.run_dir is None:
                forget_run(folder)  # nothing of a refused sweep stays behind
            raise
        identity = _identity(config, data)
        plan = Grid if config.sweep.algorithm == "grid" else Sampled
        trials: Plan = plan(folder, config, fixed=fixed, space=varied, identity=identity)
        print(f"sweep {folder}: {trials.said}. To resume after an interruption, pass run_dir={folder}", flush=True)
        if launcher is None:
            run_here(trials, config, folder)
        else:
            run_there(trials, launcher, config)
        return board.finish(folder, config, list(varied), fixed, identity)


def _check(config: Config, varied: Mapping[str, Dimension]) -> None:
    """Raise UserError for what a sweep on this machine cannot do."""
    space.check_size(config, varied)
    sweep, compute = config.sweep, config.compute
    problems = []
    if sweep.algorithm == "grid" and sweep.early_termination != "none":
        problems.append(
            f"sweep.early_termination={sweep.early_termination}: a grid runs every trial to its end; "
            "sweep=random or sweep=optuna stops those that fall behind"
        )
    if sweep.algorithm == "grid":
        problems += [
            f"{key}: a grid needs values, as in choice(...) or range(...); sweep=random or sweep=optuna draws from an "
            "interval"
            for key, dimension in varied.items()
            if isinstance(dimension, space.Interval)
        ]
    if sweep.algorithm != "grid" and importlib.util.find_spec("optuna") is None:
        problems.append(f"sweep.algorithm={sweep.algorithm} needs Optuna: pip install 'objrec[optuna]', or sweep=grid")
    if sweep.algorithm != "grid" and not varied:
        problems.append(
            f"sweep.algorithm={sweep.algorithm}: nothing is varied; train.learning_rate='interval(0.001, 0.1)'"
        )
    many = isinstance(compute.devices, list) or (isinstance(compute.devices, int) and compute.devices not in (1, -1))
    if many or compute.num_nodes > 1:
        problems.append(
            "compute.devices: a trial has one device here, trials share them out; compute.devices=1, "
            "or python azureml/submit.py for trials on several"
        )
    if problems:
        raise UserError(problems)


def _build_data(config: Config, fixed: Sequence[str], varied: Iterable[str], folder: Path) -> Mapping[str, Path] | None:
    """Build the data set once for all trials; None where what is varied changes it (then equal ones are shared)."""
    from objrec.steps import load_steps

    reads = [r for step in leading_to(load_steps(), "train_dir") for r in step.reads]
    groups = ("experiment", "debug")  # a file there may set any key
    own = config.train_dir is not None  # then nothing that is varied changes it
    if not own and any(
        k in groups or k.startswith(f"{r}.") or r == k or r.startswith(f"{k}.") for k in varied for r in reads
    ):
        return None
    return data_dirs(config, fixed, folder)


def _identity(config: Config, data: Mapping[str, Path] | None) -> str:
    """Hash what shapes every trial alike: settings, and the data set (where a built one lies has its key in it)."""
    from objrec.steps import load_steps

    given = config.train_dir is not None
    dirs = {k: data[k] for k in ("train_dir", "valid_dir")} if data is not None else {}
    places = {k: fingerprint(path) if given else str(path) for k, path in dirs.items()}
    if data is None:  # each trial builds its own from the same files
        store = StepCache(Path(config.cache_dir))
        keys = ("raw_data_dir", "source.path")
        places = {k: store.fingerprint(Path(v)) for k in keys if (v := lookup(config, k)) is not None}
    if config.backbone.weights is not None:
        places["weights"] = StepCache(Path(config.cache_dir)).fingerprint(Path(config.backbone.weights))
    settings = {step.name: settings_read(step, config) for step in leading_to(load_steps(), "model_dir")}
    told = {"settings": settings, "data": places}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def run_here(trials: Plan, config: Config, folder: Path, **options: Any) -> None:
    """Run the trials in processes of this machine; ``options`` go to ``Lanes``."""
    most = config.sweep.max_concurrent_trials
    places = len(gpus()) if config.compute.accelerator != "cpu" else 0
    lanes = min(most, places or available_cores())
    with (folder / "sweep.log").open("a") as log, board.TrialDisplay(log, config.sweep.metric) as display:

        def tell(trial: Trial, result: TrialResult) -> None:
            trials.tell(trial, result)
            display.ended(trial, result)

        Lanes(lanes, timeout=config.sweep.trial_timeout, display=display, **options).run(trials.next, tell)


def run_there(trials: Plan, launcher: Any, config: Config) -> None:
    """Run the trials through one of Hydra's launchers, in batches: joblib, submitit (Slurm), Ray."""
    grid = config.sweep.algorithm == "grid"
    attempts: dict[int, int] = {}
    queue: list[Trial] = []
    while True:
        while (grid or len(queue) < config.sweep.max_concurrent_trials) and (trial := trials.next()) is not None:
            queue.append(trial)
        if not queue:
            return
        batch = [[*_plain(t.overrides), *_place(t)] for t in queue]
        try:
            launcher.launch(batch, initial_job_idx=queue[0].number)
        except Exception as error:  # the launcher broke down, as when a worker was killed
            print(f"the launcher stopped: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        again: list[Trial] = []
        for trial in queue:
            result = TrialResult.load(trial.folder)
            attempts[trial.number] = attempts.get(trial.number, 0) + (trial.folder / ".hydra").exists()
            if result is None and attempts[trial.number] < ATTEMPTS:
                again.append(trial)
                continue
            if result is None:
                result = TrialResult(status="failed", reason="its process was killed")
                result.save(trial.folder)
            trials.tell(trial, result)
        if len(again) == len(queue) and not any(attempts[t.number] for t in queue):
            raise UserError("the launcher started no trial, see above")
        queue = again


def _place(trial: Trial) -> list[str]:
    """Name the trial's folder to Hydra: its own count begins anew with each batch, and its default with each second."""
    place = str(trial.folder.parent.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return [f"hydra.sweep.dir='{place}'", f"hydra.sweep.subdir={trial.number}"]


def _plain(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("--config-dir=")]  # Hydra knows its folders


@contextmanager
def _locked(folder: Path) -> Any:
    """Hold a sweep's folder. Raises UserError where another sweep works in it."""

    def refuse() -> None:
        raise UserError(f"run_dir={folder}: another sweep is at work there")

    with lock(folder / ".lock", busy=refuse):
        yield
