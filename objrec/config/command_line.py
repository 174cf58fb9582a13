"""What Hydra is given by ``objrec.train``, checked before it starts: flags, Hydra's own settings, every value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from objrec.config.cli import unknown_flag
from objrec.config.compose import compose_data, config_folders
from objrec.config.diagnose import diagnose, refuse_secrets
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.quoting import quote
from objrec.config.schema import Config
from objrec.config.search_space import check_size, check_values, read_command

SWEEP = ("-m", "--multirun")
SHOW = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion")
LONE_FLAGS = (*SWEEP, "-r", "--run", "--resolve", "--hydra-help", "--version", "-sc", "--shell-completion")
VALUE_FLAGS = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what may follow --info
PLACE = "run_dir=DIR says where a training or a sweep is written"
REFUSED = {  # settings of Hydra's, by the beginning of their key -> what to do instead
    "hydra.run.dir": PLACE,
    "hydra.sweep.dir": PLACE,
    "hydra.sweep.subdir": PLACE + "; a trial's folder has its number",
    "hydra.output_subdir": PLACE,
    "hydra.job.chdir": "paths in the settings are relative to the folder in which the command is started",
    "hydra.searchpath": "--config-dir DIR adds a folder of configs, for the processes of the steps too",
    "hydra/sweeper": "sweep=grid, random, bayesian or optuna says how trials are chosen",
    "hydra.sweeper._target_": "sweep=grid, random, bayesian or optuna says how trials are chosen",
    "hydra.sweeper.max_batch_size": "sweep.max_concurrent_trials says how many trials run at once",
}


@dataclass(frozen=True)
class CommandLine:
    """Hydra's arguments, sorted.

    Attributes:
        overrides: with ``--config-dir=DIR`` among them.
        multirun: ``-m`` or ``hydra.mode=MULTIRUN`` is given.
        shows: something is to be shown, and nothing run.
        flags: all other flags, for Hydra.
    """

    overrides: tuple[str, ...]
    multirun: bool
    shows: bool
    flags: tuple[str, ...]

    @property
    def for_hydra(self) -> list[str]:
        """The arguments in an order that Hydra takes: no overrides on both sides of a flag."""
        folders = [o for o in self.overrides if o.startswith("--config-dir=")]
        words = [quote(o, sweeps=self.multirun) for o in self.overrides if o not in folders]
        return [*words, *(w for f in folders for w in ("--config-dir", f.split("=", 1)[1])), *self.flags]


def sort_arguments(arguments: Sequence[str]) -> CommandLine:
    """Sort Hydra's arguments. Raises UserError for a flag that would run another configuration than is checked."""
    overrides: list[str] = []
    flags: list[str] = []
    modes: list[bool] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, sign, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            if not sign and not rest:
                raise UserError("--config-dir needs a folder")
            overrides.append(f"--config-dir={value if sign else rest.pop(0)}")
        elif argument in SWEEP:
            modes.append(True)
        elif name in ("--info", "-i"):
            flags += [name, value or (rest.pop(0) if rest and rest[0] in INFO else "all")]
        elif name in VALUE_FLAGS:
            flags += [argument] if sign or not rest else [argument, rest.pop(0)]
        elif argument in LONE_FLAGS:
            flags.append(argument)
        elif argument.startswith("-"):
            raise _unknown(argument)
        elif name == "hydra.mode":
            modes.append(value.upper().endswith("MULTIRUN"))
        else:
            overrides.append(argument)
    if len(set(modes)) > 1 or (True in modes and {"-r", "--run"} & set(flags)):
        raise UserError("-m and hydra.mode=RUN contradict each other: choose one")
    shows = any(f in SHOW for f in flags)
    return CommandLine(tuple(overrides), True in modes, shows, tuple(flags))


def _unknown(argument: str) -> UserError:
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name, [*LONE_FLAGS, *VALUE_FLAGS, "--info"], n=1, cutoff=0.5)
    whole = [f for f in (*LONE_FLAGS, *VALUE_FLAGS, "--info") if name.startswith("--") and f.startswith(name)]
    if name.startswith("--config-") or name[:3] in ("-cn", "-cp") or not (whole or near):
        return unknown_flag(argument)
    return UserError(f"unknown flag {name}: flags are written out. Did you mean {(whole or near)[0]}?")


def check_command_line(line: CommandLine) -> Config | None:
    """Check what Hydra will be given: every value of a sweep on its own.

    Returns:
        the configuration, of a sweep that of the first values; None where something is only shown.

    Raises:
        UserError: with everything that is wrong.
    """
    refuse_secrets(line.overrides)
    problems = [*_refused(line)]
    if line.shows and line.multirun:
        flag = next(f for f in line.flags if f in SHOW)
        problems.append(f"{flag} shows one configuration: leave -m out, and give each key one value")
    if problems:
        raise UserError(problems)
    plain = [o for o in line.overrides if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if {"-sc", "--shell-completion"} & set(line.flags):
        return None
    if line.shows:
        check_composition(plain)
        return None
    if not line.multirun:
        refuse_sweep(line.overrides)
        return load_config(plain)
    fixed, space = read_command(line.overrides)
    fixed = [o for o in fixed if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]
    config = check_values(fixed, space)
    check_size(config, space)
    return config


def check_composition(overrides: Sequence[str]) -> None:
    """Raise UserError where the files and overrides do not compose; values are not looked at."""
    overrides = [quote(o) for o in overrides]
    config_folders(overrides)
    try:
        compose_data(overrides)
    except Exception as error:
        raise UserError(diagnose(overrides, error)) from error


def refuse_sweep(overrides: Sequence[str]) -> None:
    """Raise UserError for settings of a sweep where one run is started, which would do nothing."""
    given = [o for o in overrides if o.lstrip("+").startswith(("sweep=", "sweep.", "hydra.sweeper."))]
    if given:
        raise UserError(f"{given[0]}: is for a sweep: python -m objrec.train -m {' '.join(given)}")


def _refused(line: CommandLine) -> Iterator[str]:
    for override in line.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        for name, cure in REFUSED.items():
            if key == name and not (name == "hydra.job.chdir" and value.lower() == "false"):
                yield f"{key}: {cure}"
