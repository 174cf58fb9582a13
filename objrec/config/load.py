"""Compose the configuration from ``configs/`` and overrides, and check all of it before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from objrec.config.complaints import explain_all
from objrec.config.compose import compose_data, config_dir, config_folders, register_resolvers
from objrec.config.diagnose import diagnose, idle_settings, illegal_additions, other_types, refuse_secrets
from objrec.config.errors import UserError
from objrec.config.quoting import quote
from objrec.config.rules import training_problems
from objrec.config.schema import Config
from objrec.config.space import remember_places

__all__ = ["config_dir", "dump", "load_config", "register_resolvers", "validate"]


def load_config(overrides: Sequence[str] = (), *, effects: bool = True) -> Config:
    """Compose and check the configuration.

    Args:
        overrides: Hydra overrides as typed on a command line, ``train.max_epochs=5``;
            ``--config-dir=DIR`` adds a folder.
        effects: refuse settings without effect; not in a trial, where another trial of the sweep has it, nor in a
            process of a run that was checked as a whole.

    Raises:
        UserError: with every unknown key, unknown group option, wrong type, out-of-range value and contradiction.
    """
    refuse_secrets(overrides)
    overrides = [quote(o) for o in overrides]
    config_folders(overrides)  # one that is missing is the only thing to say
    try:
        data = compose_data(overrides)
    except Exception as error:
        raise UserError(diagnose(overrides, error)) from error
    problems = [*illegal_additions(overrides), *other_types(overrides, data)]
    if effects:
        problems += idle_settings(overrides, data)
    config, more = validate(data)
    if problems or more or config is None:
        raise UserError([*problems, *more])
    remember_places(config)
    return config


def validate(data: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """Return the checked configuration, or None and every complaint."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        return None, explain_all(error)
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
