"""``python -m objrec.steps.<step> NAME=PATH... [overrides]``: one step, as the runner and the cloud start it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from objrec.cloud.secrets import read_secrets
from objrec.cloud.tracking import show
from objrec.config.cli import guard, overrides_of, wants_help
from objrec.config.environment import drop_secrets
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.config.space import full_disk_said
from objrec.steps.base import Step, lookup, restrict
from objrec.steps.keys import SourceIndex, key_parts
from objrec.system import outputs as places
from objrec.system.outputs import claim_cache
from objrec.system.processes import ORDER, PARENT, die_with_parent


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
    drop_secrets(keep=step.secrets)
    whole = ORDER in os.environ or places.in_a_job()  # checked already, as a whole or as one of many trials
    execute(step, load_config(renamed, effects=not whole))


def execute(step: Step, config: Config) -> None:
    """Run ``step`` on the ports that ``config`` names, put its outputs in place.

    Raises:
        UserError: for a missing port, an output that objrec did not write, or whatever the step refuses.
    """
    inputs, outputs = _ports(step, config)
    order = os.environ.pop(ORDER, None)  # the runner's: its store looks after the outputs
    if order is not None:
        _check_order(step, config, inputs, json.loads(order))
    else:
        _check_places(step, config, inputs, outputs)
    with ExitStack() as stack:
        built = {}
        for port in step.outputs:
            place = places.placed(
                port.name, outputs[port.name], port.kind, resumes=step.resumes, ours=order is not None
            )
            built[port.name] = stack.enter_context(place)
        with full_disk_said(*built.values()):
            step.run(restrict(config, step), inputs, built)
        show(built)


def _check_order(step: Step, config: Config, inputs: Mapping[str, Path], order: Mapping[str, Any]) -> None:
    """Raise UserError where this process would do something else than what its result is to be stored under."""
    digests = {name: order["inputs"].get(name, "not an input of the run") for name in inputs}
    sources = SourceIndex(Path(config.cache_dir) / "sources.json")
    parts = key_parts(step, config, digests, sources)
    if parts.key != order["key"]:
        raise UserError(
            f"step {step.name} was started for key {order['key'][:12]} but would compute {parts.key[:12]}: its "
            "settings changed on the way, or objrec's files or libraries changed since; run it "
            "again, with settings as key=value or in files of --config-dir"
        )


def _check_places(step: Step, config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    named = {port.config or port.name: inputs[port.name] for port in step.inputs if port.name in inputs}
    if problems := places.check({p.name: (outputs[p.name], p.kind) for p in step.outputs}, named):
        raise UserError(problems)
    if "cache_dir" in step.reads:
        places.refuse_inside({"cache_dir": config.cache_dir}, named)
        claim_cache(Path(config.cache_dir))


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


def help_text(step: Step) -> str:
    """Return the ``--help`` of a step, from its declaration."""
    ports = " ".join([f"[{p.name}=PATH]" if p.optional else f"{p.name}=PATH" for p in (*step.inputs, *step.outputs)])
    reads = "\n".join(f"  {key}" for key in step.reads)
    return (
        f"{step.summary}.\n\nusage: python -m {step.module} {ports} [key=value ...]\n\n"
        f"inputs:  {', '.join(p.name for p in step.inputs) or 'none'}\n"
        f"outputs: {', '.join(p.name for p in step.outputs)}\n\nsettings it reads:\n{reads}\n\n"
        "Every setting and its default: python -m objrec.train --cfg job"
    )
