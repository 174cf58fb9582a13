"""What the user gives to the pipeline instead of letting a step make it: images, splits or a model of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.steps.base import Step, leading_to, lookup

GIVEN = ("model_dir", "train_dir", "raw_data_dir")  # stand for the steps that lead to them; the first one counts
INPUTS = ("raw_data_dir", "train_dir", "valid_dir", "test_dir", "model_dir")
WRITTEN = {  # outputs that the pipeline keeps in its store -> the command that writes them anywhere
    "accuracy_file": "python -m objrec.evaluate",
    "report_dir": "python -m objrec.evaluate",
    "endpoint_file": "python -m objrec.steps.deploy",
    "export_dir": "python -m objrec.export",
}


def steps_given(steps: Sequence[Step], config: Config) -> dict[str, str]:
    """Map the name of each step whose outputs the user gives to the reason, after all that they gave was checked.

    Raises:
        UserError: inputs that do not go together, are missing or are not there, with everything that is wrong.
    """
    have = {name: str(value) for name in INPUTS if (value := lookup(config, name)) is not None}
    if problems := [
        *_outputs(config),
        *_combination(have),
        *_places(have),
        *_files(steps, config),
        *_missing(steps, have),
    ]:
        raise UserError(problems)
    setting = next((name for name in GIVEN if name in have), None)
    return {} if setting is None else {s.name: f"{setting} is given" for s in leading_to(steps, setting)}


def inputs_of(steps: Sequence[Step], config: Config) -> dict[str, Path]:
    """Return what the user gives to these steps to read, by setting."""
    keys = {p.config or p.name for step in steps for p in step.inputs} | set(INPUTS)
    return {key: Path(value) for key in sorted(keys) if (value := lookup(config, key)) is not None}


def _outputs(config: Config) -> list[str]:
    return [
        f"{name}={value}: the pipeline keeps its outputs in its cache and names them in run.json; {command} writes "
        "where you say"
        for name, command in WRITTEN.items()
        if (value := lookup(config, name)) is not None
    ]


def _combination(have: dict[str, str]) -> list[str]:
    problems = []
    if "model_dir" not in have:
        for one, other in (("train_dir", "valid_dir"), ("valid_dir", "train_dir")):
            if one in have and other not in have:
                problems.append(f"{other} is missing: give both train_dir and valid_dir, or neither")
        if "test_dir" in have and not {"train_dir", "valid_dir"} & set(have):
            problems.append("test_dir: needs train_dir=DIR valid_dir=DIR, or model_dir=DIR")
    return problems


def _places(have: dict[str, str]) -> list[str]:
    return [
        f"{name}={value}: there is no such folder"
        if not Path(value).exists()
        else f"{name}={value}: should be a folder"
        for name, value in have.items()
        if not Path(value).is_dir()
    ]


def _files(steps: Sequence[Step], config: Config) -> list[str]:
    """Name files of later steps, such as ``backbone.weights``, that are not there."""
    keys = {port.config for step in steps for port in step.inputs if port.kind == "file" and port.config is not None}
    named = {key: lookup(config, key) for key in sorted(keys)}
    return [f"{k}={v}: there is no such file" for k, v in named.items() if v is not None and not Path(v).is_file()]


def _missing(steps: Sequence[Step], have: dict[str, str]) -> list[str]:
    """Name test images that evaluation will need and that no step makes."""
    needed = any(p.name == "test_dir" and not p.optional for step in steps for p in step.inputs)
    given = "model_dir" if "model_dir" in have else "train_dir" if "train_dir" in have else None
    if not needed or given is None or "test_dir" in have:
        return []
    return [
        f"test_dir is missing: with {given} given no step makes a test split, and evaluation needs one: test_dir=DIR"
    ]
