"""A trial and what became of it, as both lie in its folder. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from objrec.system.files import read_json, write_json

Status = Literal["finished", "pruned", "failed"]


class Pruned(Exception):
    """The study ends this trial early: others were better after as many epochs."""

    def __init__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.epoch, self.metrics = epoch, dict(metrics)
        super().__init__(f"stopped after epoch {epoch + 1}: other trials were better by then")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of values.

    Attributes:
        folder: takes the model, the log and the result.
        fixed: overrides that all trials share.
        values: what is varied, key -> value as typed on a command line.
        identity: a hash of all that shapes the training; a stored result counts only where it is the same.
    """

    number: int
    folder: Path
    fixed: tuple[str, ...]
    values: dict[str, str]
    identity: str

    @property
    def name(self) -> str:
        return f"trial {self.number}"

    @property
    def overrides(self) -> list[str]:
        return [*self.fixed, *self.words]

    @property
    def words(self) -> list[str]:
        """The varied overrides alone."""
        return [f"{k}={v}" for k, v in self.values.items()]

    def save(self) -> None:
        """Write ``trial.json``, so that a later sweep in the same folder knows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "trial.json", {"values": self.values, "identity": self.identity})


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What became of a trial: ``metrics`` are those of its best epoch; of a pruned one those of its last."""

    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "result.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> TrialResult | None:
        data = read_json(folder / "result.json")
        return None if data is None else cls(**data)


def stored_trials(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what ``trial.json`` holds of each trial in a sweep's folder, by number."""
    found = {int(p.parent.name): read_json(p) for p in folder.glob("*/trial.json") if p.parent.name.isdecimal()}
    return {number: data for number, data in sorted(found.items()) if data is not None}
