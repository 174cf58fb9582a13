"""Resuming a training: its folder of checkpoints, and which settings and data they belong to."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from objrec.config.errors import UserError
from objrec.system.files import read_json, write_json

OWN = ("settings.sha256", "found.json", ".found.json", "mlflow_run")
CURVES = ("metrics.csv", "per_class.csv", "curves.png", "batch.png", "lr_finder.png", "settings.json")


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one training's checkpoints.

    Attributes:
        longer: whether the training that left them was to have fewer epochs.
        finished: whether the model folder holds this very training.
    """

    folder: Path
    longer: bool = False
    finished: bool = False

    @property
    def last(self) -> Path:
        """Where an interrupted training resumes."""
        return self.folder / "last.ckpt"

    @property
    def found(self) -> dict[str, Any]:
        """What a resumed run does not do again: measured batch size and rate, and in the end the best epoch."""
        return dict(read_json(self.folder / "found.json") or {})

    def remember(self, found: dict[str, Any]) -> None:
        write_json(self.folder / "found.json", found)

    def remove(self) -> None:
        """Remove the folder; what is not a training's own stays."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_file() and (".ckpt" in path.suffixes or path.name in OWN):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def open_checkpoints(training_dir: Path, identity: Mapping[str, Any], resume: Literal["auto", "never"]) -> Checkpoints:
    """Return the folder of checkpoints: of this training, or of the same one with fewer epochs.

    Args:
        identity: the settings that shape the training, and its data.
        resume: ``never`` removes what is there.

    Raises:
        UserError: it holds the checkpoints of another training, or the model folder a finished one without any.
    """
    folder, owner = training_dir / "checkpoints", training_dir / "settings.json"
    checkpoints = Checkpoints(folder)
    if resume == "never" and training_dir.exists():
        _clear(training_dir)
    trained = (training_dir.parent / "model.json").is_file() and owner.is_file()
    done = trained and ("best" in checkpoints.found or not folder.exists())
    before = json.loads(owner.read_text()) if owner.is_file() else {}
    longer = (checkpoints.last.is_file() or done) and _is_longer(before, identity, training_dir)
    if longer and not checkpoints.last.is_file():
        raise UserError(
            f"{training_dir.parent} holds a finished training, whose checkpoints were not kept "
            "(train.keep_checkpoints=true): give another folder, or train.resume=never to train anew there"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if _changes(before, identity):  # of what was measured, the batch size may depend on them
        checkpoints.remember({k: v for k, v in checkpoints.found.items() if longer and k != "best"})
    write_json(owner, identity)
    return Checkpoints(folder, longer=longer, finished=done and not longer)


def _is_longer(before: Mapping[str, Any], now: Mapping[str, Any], training_dir: Path) -> bool:
    """Whether only ``train.max_epochs`` has grown since ``before``. Raises UserError for any other difference."""
    changed = _changes(before, now)
    if not changed:
        return False
    old, new = _flat(before), _flat(now)
    if changed == ["train.max_epochs"] and old[changed[0]] < new[changed[0]]:
        return True
    said = [f"{k} {old.get(k)} → {new.get(k)}" if k != "data" else "the training data" for k in sorted(changed)]
    what = ", ".join(said[:4]) + (", ..." if len(said) > 4 else "") if before else "unknown settings"
    raise UserError(
        f"{training_dir} holds the checkpoints of a training with other settings ({what}). Resume it with its own "
        "(only train.max_epochs may grow), give another folder, or discard it with train.resume=never"
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys that differ, but for what only says what is kept."""
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    return [k for k in {**old, **new} if old.get(k) != new.get(k) and k != "train.keep_checkpoints"]


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {prefix[:-1]: data}
    return {k: v for name, value in data.items() for k, v in _flat(value, f"{prefix}{name}.").items()}


def _clear(training_dir: Path) -> None:
    """Remove what a training of other settings left; a file that someone else put there stays."""
    Checkpoints(training_dir / "checkpoints").remove()
    for name in CURVES:
        (training_dir / name).unlink(missing_ok=True)
    shutil.rmtree(training_dir / "logs", ignore_errors=True)
