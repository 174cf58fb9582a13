"""The declaration of a step, from which the local runner, the command line and the Azure component are derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from objrec.config.schema import Config

Kind = Literal["folder", "file"]


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or an output of a step.

    Attributes:
        name: as on the command line, ``NAME=PATH``.
        kind: a folder or a single file.
        optional: for inputs: the step runs without it.
        config: the config key that holds the path, where it is not ``name`` itself.
    """

    name: str
    kind: Kind = "folder"
    optional: bool = False
    config: str | None = None


class Run(Protocol):
    """What a step does. ``inputs`` and ``outputs`` map port names to paths; an absent optional input is left out.

    Output folders exist and are empty (with ``resumes``: as the last, interrupted try left them); output files do
    not exist.
    """

    def __call__(self, config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: also the module under ``objrec.steps``.
        run: does the work; heavy imports belong inside it.
        reads: dotted config keys that it may read. The step gets nothing else, and its cache key covers just these.
        libraries: distributions whose version shapes the output.
        secrets: environment variables with secrets that it reads; its process gets no other.
        compute: the kind of machine it wants in the cloud.
        cached: False for a step that acts on the world and must always run.
        resumes: True where a second try resumes from the first one's partial outputs.
        distributed: True where several processes, on one node or more, share the work.
    """

    name: str
    summary: str
    run: Run
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    reads: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    compute: Literal["cpu", "gpu"] = "cpu"
    cached: bool = True
    resumes: bool = False
    distributed: bool = False

    @property
    def module(self) -> str:
        return f"objrec.steps.{self.name}"


@dataclass(frozen=True)
class Restricted:
    """A view of a config section that refuses what the step has not declared to read.

    Reading an undeclared key is a defect of ours (the cache key would miss it), so it raises AssertionError.
    """

    section: Any
    reads: tuple[str, ...]
    prefix: str = field(default="")

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.section, name)
        key = f"{self.prefix}{name}"
        if callable(value) and not hasattr(type(self.section), "model_fields"):
            return value
        if any(key == r or key.startswith(f"{r}.") for r in self.reads):
            return value
        if any(r.startswith(f"{key}.") for r in self.reads):
            return Restricted(value, self.reads, f"{key}.")
        raise AssertionError(f"this step reads the config key '{key}' without declaring it")


def leading_to(steps: Sequence[Step], output: str) -> list[Step]:
    """Return those of ``steps`` that make an output, such as ``train_dir``, or what these read, in order."""
    wanted, found = {output}, []
    for step in reversed(steps):
        if wanted & {p.name for p in step.outputs}:
            found.append(step)
            wanted |= {p.name for p in step.inputs}
    return found[::-1]


def lookup(config: Config, key: str) -> Any:
    """Return the value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def restrict(config: Config, step: Step) -> Config:
    """Return ``config`` as ``step`` may see it: the keys it reads."""
    return cast(Config, Restricted(config, step.reads))


def make_step(**declaration: Any) -> Callable[[Run], Step]:
    """Decorator: turn a run function into a step whose summary is the first line of the function's docstring."""

    def decorate(run: Run) -> Step:
        summary = (run.__doc__ or "").strip().split("\n")[0].rstrip(".")
        return Step(run=run, summary=summary, **declaration)

    return decorate
