"""Trials that are chosen in the light of others: Optuna behind ask and tell, kept in the sweep's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objrec.config.schema import Sweep
from objrec.config.search_space import Choice, Dimension
from objrec.sweeps.trial import Pruned, TrialResult

JOURNAL = "study.journal"  # a line for each event: survives a kill, and several processes may write
SLACK = 0.1  # of "bandit", as in the cloud: what is worse than the best by more than this share is stopped
WORST = 20  # of "truncation": this per cent of the trials is stopped after each epoch


class Study:
    """Ask for values, tell results. Not for several threads at once."""

    def __init__(self, folder: Path, sweep: Sweep, *, seed: int, space: Mapping[str, Dimension]) -> None:
        _mend(folder / JOURNAL)
        self._study = _open(folder, sweep, seed=seed)
        from optuna.trial import TrialState

        self._distributions = {key: _distribution(d) for key, d in space.items()}
        for trial in self._study.get_trials():
            if trial.state.name == "RUNNING" and not self._has_values(trial):
                self._study.tell(trial.number, state=TrialState.FAIL)

    def running(self) -> list[tuple[int, dict[str, str]]]:
        """Return (number, values) of the trials that were begun and not told."""
        return [(t.number, _words(t.params)) for t in self._begun() if t.state.name == "RUNNING"]

    def count(self) -> int:
        """Return how many trials were begun."""
        return len(self._begun())

    def _begun(self) -> list[Any]:
        return [t for t in self._study.get_trials() if self._has_values(t)]

    def _has_values(self, trial: Any) -> bool:
        """Whether a trial has its values: a kill may have come before they were drawn."""
        return bool(trial.params.keys() >= self._distributions.keys())

    def ask(self) -> tuple[int, dict[str, str]]:
        """Return the number and the values of a new trial."""
        trial = self._study.ask(self._distributions)
        return trial.number, _words(trial.params)

    def tell(self, number: int, result: TrialResult, metric: str) -> None:
        """Record what became of a trial."""
        from optuna.trial import TrialState

        value = result.metrics.get(metric, math.nan)
        if result.status == "finished" and math.isfinite(value):
            self._study.tell(number, value)
        else:
            self._study.tell(number, state=TrialState.PRUNED if result.status == "pruned" else TrialState.FAIL)


class StudyListener:
    """Show the study each epoch of a trial, in the trial's own process. Raises ``Pruned`` to end it."""

    def __init__(self, folder: Path, number: int, sweep: Sweep) -> None:
        self._study = _open(folder, sweep, seed=0)
        self._id = self._study.get_trials(deepcopy=False)[number]._trial_id
        self._metric = sweep.metric

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        storage = self._study._storage
        if epoch not in storage.get_trial(self._id).intermediate_values:  # a resumed trial repeats its last epoch
            storage.set_trial_intermediate_value(self._id, epoch, metrics[self._metric])
        if self._study.pruner.prune(self._study, storage.get_trial(self._id)):
            raise Pruned(epoch, metrics)


class _Lock:
    """What Optuna's journal is written under. The kernel frees it when its holder is killed; Optuna's own stays."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None

    def acquire(self) -> bool:
        import fcntl

        self._file = open(self._path, "w")  # noqa: SIM115, PTH123
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()


def _open(folder: Path, sweep: Sweep, *, seed: int) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = str(folder / JOURNAL)
    storage = JournalStorage(JournalFileBackend(path, lock_obj=_Lock(f"{path}.lock")))
    study = optuna.create_study(
        storage=storage,
        study_name="sweep",
        direction="maximize" if sweep.metric.endswith("acc") else "minimize",
        load_if_exists=True,
        pruner=_pruner(sweep),
    )
    seed += len(study.get_trials(deepcopy=False))  # a study that is carried on must not draw its first values again
    if sweep.algorithm == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    else:  # a tree-structured Parzen estimator (Bergstra et al., 2011), over all keys jointly
        study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
    return study


def _pruner(sweep: Sweep) -> Any:
    from optuna import pruners

    after = sweep.delay_epochs
    if sweep.early_termination == "median":
        return pruners.MedianPruner(n_warmup_steps=after)
    if sweep.early_termination == "truncation":
        return pruners.PercentilePruner(100 - WORST, n_warmup_steps=after)
    if sweep.early_termination == "bandit":
        return _bandit(after)
    return pruners.NopPruner()


def _bandit(after: int) -> Any:
    """Return a pruner with the rule of the cloud's bandit policy: within a slack of the best after as many epochs."""
    import optuna

    class Bandit(optuna.pruners.BasePruner):
        def prune(self, study: Any, trial: Any) -> bool:
            step = trial.last_step
            if step is None or step < after:
                return False
            others = [t.intermediate_values for t in study.get_trials(deepcopy=False) if t.number != trial.number]
            seen = [values[step] for values in others if step in values]
            if not seen:
                return False
            own = trial.intermediate_values[step]
            if study.direction.name == "MAXIMIZE":
                return bool(own < max(seen) / (1 + SLACK))
            return bool(own > min(seen) * (1 + SLACK))

    return Bandit()


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _words(params: Mapping[str, Any]) -> dict[str, str]:
    return {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in params.items()}


def _mend(journal: Path) -> None:
    """Cut off half a line that a kill may have left: the next one would be written onto it."""
    if not journal.is_file():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    if lines and not _is_json(lines[-1]):
        whole = b"".join(lines[:-1])
    if len(whole) < len(content):
        journal.write_bytes(whole)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
