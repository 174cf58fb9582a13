"""Which trials a sweep has: every combination, or what a study chooses. What an earlier sweep finished is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.config.search_space import Dimension, combinations
from objrec.sweeps.trial import Trial, TrialResult, stored_trials
from objrec.system.files import read_json, write_json


class Plan(Protocol):
    """Which trials there are. Not for several threads at once."""

    said: str  # what is to be done, for the terminal

    def next(self) -> Trial | None:
        """Return a trial to run, or None when there is none left."""

    def tell(self, trial: Trial, result: TrialResult) -> None:
        """Take note of a trial's end."""


class Grid:
    """Every combination, without those that an earlier sweep in this folder finished."""

    def __init__(
        self, folder: Path, config: Config, *, fixed: Sequence[str], space: Mapping[str, Dimension], identity: str
    ) -> None:
        known = {_mark(t["identity"], t["values"]): number for number, t in stored_trials(folder).items()}
        self._left: list[Trial] = []
        done, free = 0, max(known.values(), default=-1) + 1
        for values in combinations(space):
            mark = _mark(identity, values)
            number = known.get(mark, free)
            trial = Trial(
                number=number, folder=folder / str(number), fixed=tuple(fixed), values=values, identity=identity
            )
            result = TrialResult.load(trial.folder) if mark in known else None
            if result is not None and result.status == "finished":
                done += 1
            else:
                self._left.append(trial)
            free = max(free, number + 1)
        self.said = f"{len(self._left) + done} trials" + (f", {done} of them finished before" if done else "")

    def next(self) -> Trial | None:
        return _begin(self._left.pop(0)) if self._left else None

    def tell(self, trial: Trial, result: TrialResult) -> None:
        """A grid learns nothing."""


class Sampled:
    """Trials that a study chooses, ``sweep.max_trials`` of them with those of earlier sweeps in this folder."""

    def __init__(
        self, folder: Path, config: Config, *, fixed: Sequence[str], space: Mapping[str, Dimension], identity: str
    ) -> None:
        from objrec.sweeps.sampling import Study

        self._folder, self._sweep, self._fixed, self._identity = folder, config.sweep, tuple(fixed), identity
        _check_same_sweep(folder, config, space, identity)
        self._study = Study(folder, config.sweep, seed=config.seed, space=space)
        self._cut: list[Trial] = []
        for number, values in self._study.running():
            trial = self._trial(number, values)
            if (result := TrialResult.load(trial.folder)) is not None:
                self.tell(trial, result)  # the sweep was killed between the trial's end and this
            else:
                self._cut.append(trial)
        begun = self._study.count()
        self.said = f"{config.sweep.max_trials} trials, {config.sweep.algorithm}"
        if begun:
            self.said += f", {begun - len(self._cut)} of them ended before, {len(self._cut)} carried on"

    def next(self) -> Trial | None:
        if self._cut:
            return _begin(self._cut.pop(0))
        if self._study.count() >= self._sweep.max_trials:
            return None
        return _begin(self._trial(*self._study.ask()))

    def tell(self, trial: Trial, result: TrialResult) -> None:
        self._study.tell(trial.number, result, self._sweep.metric)

    def _trial(self, number: int, values: dict[str, str]) -> Trial:
        folder = self._folder / str(number)
        return Trial(number=number, folder=folder, fixed=self._fixed, values=values, identity=self._identity)


def _begin(trial: Trial) -> Trial:
    """Note a trial before it runs; what an earlier, failed attempt said of its end is no longer true."""
    trial.save()
    (trial.folder / "result.json").unlink(missing_ok=True)
    return trial


def _mark(identity: str, values: Mapping[str, str]) -> str:
    return json.dumps([identity, sorted(values.items())])


def _check_same_sweep(folder: Path, config: Config, space: Mapping[str, Dimension], identity: str) -> None:
    """Raise UserError where the folder holds a study of other settings: its results would teach wrong things."""
    words = {key: repr(d) for key, d in space.items()}
    metric = config.sweep.metric
    now = {"metric": metric, "space": words, "identity": identity}
    before = read_json(folder / "sweep.json")
    if before is not None and before != now:
        kinds = {"metric": "metric", "space": "search space", "identity": "settings"}
        what = ", ".join(kinds[k] for k in kinds if before.get(k) != now[k])
        raise UserError(f"run_dir={folder} holds a sweep with another {what}: choose another run_dir")
    write_json(folder / "sweep.json", now)
