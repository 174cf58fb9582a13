"""Compose the configuration from ``configs/`` and overrides, and check all of it before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from objrec.config.cli import unknown_flag
from objrec.config.compose import compose_data, config_dir, expand_sources, quote_path, register_resolvers
from objrec.config.diagnose import check_nodes, diagnose, explain, illegal_additions, refuse_secrets
from objrec.config.errors import UserError
from objrec.config.rules import training_problems
from objrec.config.schema import Config
from objrec.config.space import remember_places

__all__ = ["check_command_line", "config_dir", "dump", "load_config", "quote_path", "register_resolvers", "validate"]


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose and check the configuration.

    Args:
        overrides: Hydra overrides as typed on a command line, ``train.max_epochs=5``;
            ``--config-dir=DIR`` adds a folder.

    Raises:
        UserError: with every unknown key, unknown group option, wrong type, out-of-range value and contradiction.
    """
    refuse_secrets(overrides)
    overrides = expand_sources([quote_path(o) for o in overrides])
    try:
        data = compose_data(overrides)
    except Exception as error:
        raise UserError(diagnose(overrides, error)) from error
    problems = [*illegal_additions(overrides), *check_nodes(overrides, data)]
    config, more = validate(data)
    if problems or more or config is None:
        raise UserError([*problems, *more])
    remember_places(config)
    return config


LONE_FLAGS: tuple[str, ...] = (
    "-m",
    "--multirun",
    "-r",
    "--run",
    "--resolve",
    "--hydra-help",
    "--version",
    "-i",
    "--info",
)
LONE_FLAGS += ("-sc", "--shell-completion")
VALUE_FLAGS = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p")
PLACES = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for a flag of Hydra's that would run another configuration than the one that is checked."""
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in (*LONE_FLAGS, *VALUE_FLAGS):
            raise unknown_flag(argument)


def check_command_line(arguments: Sequence[str]) -> Config:
    """Check what Hydra will be given, before it starts: every value of a sweep on its own.

    Returns:
        the configuration; of a sweep that of the first values.

    Raises:
        UserError: with everything that is wrong.
    """
    check_flags(arguments)
    overrides, multirun = _sort_arguments(arguments)
    plain = [o for o in overrides if not o.startswith("hydra")]
    moved = [o.partition("=")[0] for o in overrides if o.partition("=")[0].lstrip("+~") in PLACES]
    problems = [f"{key}: run_dir=DIR says where a training or a sweep is written" for key in moved]
    configs: list[Config] = []
    for variant in _variants(plain) if multirun else [plain]:
        try:
            configs.append(load_config(variant))
        except UserError as error:
            problems += [m for m in error.messages if m not in problems]
    if problems:
        raise UserError(problems)
    return configs[0]


def _sort_arguments(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return the overrides among Hydra's arguments, and whether ``-m`` is."""
    overrides, multirun, rest = [], False, list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--config-dir", "-cd") and rest:
            overrides.append(f"--config-dir={rest.pop(0)}")
        elif argument.startswith("-cd="):
            overrides.append(f"--config-dir={argument[4:]}")
        elif argument in ("-m", "--multirun"):
            multirun = True
        elif not argument.startswith("-") or argument.startswith("--config-dir="):
            overrides.append(quote_path(argument))
        elif argument in VALUE_FLAGS and rest:
            rest.pop(0)
    return overrides, multirun


def _variants(overrides: list[str]) -> list[list[str]]:
    """Return the overrides of trials that together hold every value of every list; intervals are left out."""
    from objrec.config.diagnose import parse_overrides

    lists = [[o] for o in overrides if o.startswith("--config-dir=")]
    for text, parsed in parse_overrides(overrides):
        if isinstance(parsed, Exception) or not parsed.is_sweep_override():
            lists.append([text])
        elif parsed.is_discrete_sweep():
            key = text.split("=")[0]
            lists.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
    first = [values[0] for values in lists]
    others = [[*first[:i], v, *first[i + 1 :]] for i, values in enumerate(lists) for v in values[1:]]
    return [first, *others]


def validate(data: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """Return the checked configuration, or None and every complaint."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        return None, [line for e in error.errors() for line in explain(e)]
    problems = training_problems(config)
    return (None if problems else config), problems


def dump(config: BaseModel, *, keyed_only: bool = False) -> dict[str, Any]:
    """Return plain data of ``config``; with ``keyed_only`` without what no cache key may hold."""
    data: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if keyed_only and marks.get("keyed") is False:
            continue
        value = getattr(config, name)
        data[field.alias or name] = dump(value, keyed_only=keyed_only) if isinstance(value, BaseModel) else value
    return {**data, **(config.model_extra or {})}
