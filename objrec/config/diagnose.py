"""What is wrong with a configuration: every fault at once, each with the nearest legal name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from objrec.config.compose import compose_data, config_dir
from objrec.config.errors import UserError, did_you_mean
from objrec.config.rules import without_effect
from objrec.config.schema import Config

OPEN_NODES = ("callbacks", "logger")  # `+callbacks.mine={_target_: ...}` may add a node here
NO_KEY = (
    "a secret on a command line is seen by every user of the machine, and one in a settings file is saved with the "
    "run: set OBJREC_SERVE_KEY in the environment, or serve.key_file=PATH of a file with a key a line"
)
FILE_NODES = ("optimizer", "scheduler", "source")  # what keys they have, their file says


def diagnose(overrides: Sequence[str], cause: Exception) -> list[str]:
    """Composition failed: find every override that is at fault, not only the first that Hydra stumbled on."""
    problems: list[str] = []
    good: list[str] = []
    values: list[tuple[str, Any]] = []
    for text, parsed in parse_overrides(overrides):
        if isinstance(parsed, Exception):
            problems.append(f"{text}: is not valid key=value syntax; quote special characters, as in 'key=\"a b\"'")
            continue
        key = parsed.key_or_group
        options = _group_options(key, overrides)
        if options is None:
            values.append((text, parsed))
            continue
        chosen = parsed.value()
        wrong = [
            c for c in (chosen if isinstance(chosen, list) else [chosen]) if c is not None and str(c) not in options
        ]
        if parsed.is_sweep_override():
            problems.append(f"{text}: multiple values need -m (--multirun)")
        elif wrong:
            problems.append(f"{text}: no such {key}.{did_you_mean(str(wrong[0]), options, what=f'{key} is one of')}")
        else:
            good.append(text)
    folders = [o for o in overrides if o.startswith("--config-dir=")]
    try:
        legal = set(_data_keys(compose_data([*folders, *good])))
    except Exception as error:  # the files themselves are at fault
        return problems or [_first_line(error)]
    for text, parsed in values:
        key = parsed.key_or_group
        if parsed.is_sweep_override():
            problems.append(f"{text}: multiple values need -m (--multirun)")
        elif key in legal or key.startswith("hydra.") or (key.split(".")[0] in OPEN_NODES and text.startswith("+")):
            good.append(text)
        else:
            problems.append(f"{key}: unknown key.{did_you_mean(key, legal)}")
    try:
        problems += _faults(compose_data([*folders, *good]))
    except Exception as error:
        problems.append(_first_line(error))
    return list(dict.fromkeys(problems)) or [_first_line(cause)]


def _faults(data: dict[str, Any]) -> list[str]:
    try:
        Config.model_validate(data)
    except ValidationError as error:
        return [line for e in error.errors() for line in explain(e)]
    return []


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Raise UserError for a key of the endpoint among the overrides, before anything can repeat it."""
    if any(re.match(r"\W*serve\W+key\W*[=:]", o) for o in overrides):
        raise UserError(f"serve.key: {NO_KEY}")


def explain(error: Any) -> Iterator[str]:
    """Turn one pydantic complaint into ``key: what is wrong``."""
    where = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("int", "literal", "list[")))
    if where == "serve.key":
        yield f"{where}: {NO_KEY}"
    elif error["type"] == "extra_forbidden":
        yield f"{where}: unknown key.{did_you_mean(where, flatten_keys(Config))}"
    elif error["type"] == "missing":
        yield f"{where}: has no value"
    elif error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        yield from (f"{where}: {message}" if where else message).split("\n")
    else:
        message = error["msg"].replace("Input s", "s").replace("Value error, ", "")
        yield f"{where}={error['input']}: {message}"


def illegal_additions(overrides: Sequence[str]) -> list[str]:
    """``+key=`` is for new nodes among callbacks and loggers; anywhere else it is a typo that Hydra would accept."""
    if not any(o.startswith("+") for o in overrides):
        return []
    found = []
    legal = set(flatten_keys(Config))
    for text, parsed in parse_overrides(overrides):
        if isinstance(parsed, Exception) or not text.startswith("+"):
            continue
        key = parsed.key_or_group
        if key.split(".")[0] in FILE_NODES and key not in legal and "." in key:
            section = key.split(".")[0]
            base = compose_data(
                [o for o, p in parse_overrides(overrides) if not isinstance(p, Exception) and not o.startswith("+")]
            )
            known = [f"{section}.{k}" for k in _data_keys(base[section])]
            if key not in known:
                found.append(
                    f"{key}: unknown key.{did_you_mean(key, known)} (More arguments belong in a file: "
                    f"configs/{section}/<name>.yaml, chosen by {section}=<name>.)"
                )
    return found


def check_nodes(overrides: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Return what is wrong with single overrides: of another type than in their file, or without effect."""
    idle = [
        problem
        for text, p in parse_overrides(overrides)
        if not isinstance(p, Exception) and not text.startswith("~")
        if (problem := without_effect(p.key_or_group, data)) is not None
    ]
    return [*_other_types(overrides, data), *dict.fromkeys(idle)]


def _other_types(overrides: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Values of ``_target_`` nodes keep the type that their file gives them."""
    touched = [
        (text, p)
        for text, p in parse_overrides(overrides)
        if not isinstance(p, Exception)
        and p.key_or_group.split(".")[0] in (*FILE_NODES, *OPEN_NODES)
        and "." in p.key_or_group
        and not text.startswith(("+", "~"))
    ]
    if not touched:
        return []
    names = {text for text, _ in touched}
    base = compose_data([o for o in overrides if o not in names])
    found = []
    for text, p in touched:
        was, now = _select(base, p.key_or_group), _select(data, p.key_or_group)
        numbers = isinstance(was, (int, float)) and not isinstance(was, bool)
        fits = (
            was is None
            or now is None
            or (isinstance(now, (int, float)) and not isinstance(now, bool) if numbers else isinstance(now, type(was)))
        )
        if not fits:
            found.append(f"{text}: should be like {was!r}, of type {type(was).__name__}")
    return found


def parse_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (text, parsed override or the parser's error)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for text in overrides:
        if text.startswith("--config-dir="):
            continue
        try:
            yield text, parser.parse_override(text)
        except Exception as error:
            yield text, error


def flatten_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that the schema declares, sections included."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flatten_keys(field.annotation, f"{key}.")


def _data_keys(data: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield f"{prefix}{name}"
            yield from _data_keys(value, f"{prefix}{name}.")


def _select(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _group_options(group: str, overrides: Sequence[str]) -> list[str] | None:
    """Names of the files in a config group, or None where there is no such group."""
    places = [config_dir(), *(o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir="))]
    folders = [Path(p) / group for p in places if (Path(p) / group).is_dir()]
    return sorted({f.stem for folder in folders for f in folder.glob("*.yaml")}) if folders else None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
