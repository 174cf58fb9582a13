"""``python -m objrec.steps.<step> NAME=PATH... [overrides]``: one step, as the runner and the cloud start it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from objrec.cloud.secrets import read_secrets
from objrec.cloud.tracking import show
from objrec.config.cli import guard, overrides_of, wants_help
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.pipeline.child import PARENT, die_with_parent
from objrec.pipeline.runner import lookup
from objrec.pipeline.step import Port, Step, restrict


def main(step: Step, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``step`` with command-line arguments and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if wants_help(arguments):
        print(help_text(step))
        sys.exit(0)
    if PARENT in os.environ:
        die_with_parent()
        os.environ.pop(PARENT)  # its own children have another parent
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the runner, which then ends us in order
    sys.exit(guard(lambda: run_step(step, overrides_of(arguments))))


def run_step(step: Step, overrides: Sequence[str]) -> None:
    """Compose the configuration and ``execute`` the step. Raises UserError."""
    aliases = {p.name: p.config for p in (*step.inputs, *step.outputs) if p.config is not None}
    renamed = []
    for override in overrides:
        name, sign, value = override.partition("=")
        renamed.append(f"{aliases[name]}={value}" if sign and name in aliases else override)
    read_secrets()
    execute(step, load_config(renamed))


def execute(step: Step, config: Config) -> None:
    """Run ``step`` on the ports that ``config`` names, put its outputs in place.

    Raises:
        UserError: for a missing port or whatever the step refuses.
    """
    inputs, outputs = _ports(step, config)
    with ExitStack() as stack:
        places = {p.name: stack.enter_context(_in_place(outputs[p.name], p, step.resumes)) for p in step.outputs}
        step.run(restrict(config, step), inputs, places)
        show(places)


def _ports(step: Step, config: Config) -> tuple[dict[str, Path], dict[str, Path]]:
    problems, inputs, outputs = [], {}, {}
    for port in step.inputs:
        value = lookup(config, port.config or port.name)
        if value is None and not port.optional:
            problems.append(f"step {step.name} needs the input {port.name}=PATH")
        elif value is not None:
            inputs[port.name] = path = Path(value)
            if not path.exists():
                problems.append(f"{port.config or port.name}={value}: there is no such file or folder")
            elif port.config is None and path.is_dir() != (port.kind == "folder"):
                problems.append(f"{port.name}={value}: should be a {port.kind}")
    for port in step.outputs:
        value = lookup(config, port.name)
        if value is None:
            problems.append(f"step {step.name} needs the output {port.name}=PATH")
        else:
            outputs[port.name] = Path(value)
    if problems:
        raise UserError(problems)
    return inputs, outputs


@contextmanager
def _in_place(final: Path, port: Port, resumes: bool) -> Iterator[Path]:
    """Yield where to write; move it to ``final`` when the step has ended well, leave nothing there when it has not.

    An existing empty folder is written directly: a cloud platform mounts its outputs so, and a mount cannot be renamed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    in_a_job = "AZUREML_RUN_ID" in os.environ  # its folders are this step's alone, and other ranks may have begun
    if port.kind == "folder" and final.is_dir() and (in_a_job or os.path.ismount(final) or not any(final.iterdir())):
        yield final
        return
    beside = final.with_name(f"{final.name}.partial")
    if beside.exists() and not resumes:
        _remove(beside)
    if port.kind == "folder":
        beside.mkdir(exist_ok=True)
    try:
        yield beside
    except UserError:
        if not (resumes and beside.is_dir() and any(beside.iterdir())):  # what was trained so far is the user's
            _remove(beside)  # nothing else of a refused run stays behind
        raise
    if final.exists():
        old = final.with_name(f".{final.name}.old{os.getpid()}")
        final.rename(old)
        beside.rename(final)
        _remove(old)
    else:
        beside.rename(final)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def help_text(step: Step) -> str:
    """Return the ``--help`` of a step, from its declaration."""
    ports = " ".join([f"[{p.name}=PATH]" if p.optional else f"{p.name}=PATH" for p in (*step.inputs, *step.outputs)])
    reads = "\n".join(f"  {key}" for key in step.reads)
    return (
        f"{step.summary}.\n\nusage: python -m {step.module} {ports} [key=value ...]\n\n"
        f"inputs:  {', '.join(p.name for p in step.inputs) or 'none'}\n"
        f"outputs: {', '.join(p.name for p in step.outputs)}\n\nsettings that it reads:\n{reads}\n\n"
        "Every setting and its default: python -m objrec.train --cfg job"
    )
