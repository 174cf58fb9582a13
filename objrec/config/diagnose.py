"""What is wrong with a configuration: every fault at once, each with the nearest legal name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from objrec.config.backbone_names import name_problem
from objrec.config.complaints import NO_KEY, explain_all, flatten_keys, unknown_key
from objrec.config.compose import compose_data, group_options
from objrec.config.errors import UserError, did_you_mean
from objrec.config.rules import without_effect
from objrec.config.schema import Config

OPEN_NODES = ("callbacks", "logger")  # `+callbacks.mine={_target_: ...}` may add a node here
FILE_NODES = ("optimizer", "scheduler", "source")  # what keys they have, their file says


def diagnose(overrides: Sequence[str], cause: Exception) -> list[str]:
    """Composition failed: find every override that is at fault, not only the first that Hydra stumbled on."""
    problems: list[str] = []
    good: list[str] = []
    values: list[tuple[str, Any]] = []
    broken: set[str] = set()
    for text, parsed in parse_overrides(overrides):
        if isinstance(parsed, Exception):
            broken.add(text.partition("=")[0].lstrip("+~"))
            problems.append(f"{text}: is not valid key=value syntax; quote special characters, as in 'key=\"a b\"'")
            continue
        key = parsed.key_or_group
        options = group_options(key, overrides)
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
            problems.append(_no_such_option(text, key, str(wrong[0]), options))
        else:
            good.append(text)
    folders = [o for o in overrides if o.startswith("--config-dir=")]
    try:
        legal = set(_data_keys(compose_data([*folders, *good])))
    except Exception as error:  # the files themselves are at fault
        return problems or [file_fault(error)]
    for text, parsed in values:
        key = parsed.key_or_group
        if parsed.is_sweep_override():
            problems.append(f"{text}: multiple values need -m (--multirun)")
        elif key in legal or key.startswith("hydra.") or (key.split(".")[0] in OPEN_NODES and text.startswith("+")):
            good.append(text)
        else:
            problems.append(unknown_key(key, legal))
    try:
        problems += [f for f in _faults(compose_data([*folders, *good])) if f.partition(":")[0] not in broken]
    except Exception as error:
        problems.append(file_fault(error))
    return list(dict.fromkeys(problems)) or [file_fault(cause)]


def _no_such_option(text: str, group: str, name: str, options: Sequence[str]) -> str:
    message = f"{text}: no such {group}.{did_you_mean(name, options, what=f'{group} is one of')}"
    if group == "backbone" and name_problem(name) is None:
        return f"{text}: {name} has no file in configs/backbone; any model of timm goes to backbone.name={name}"
    return message


def _faults(data: dict[str, Any]) -> list[str]:
    try:
        Config.model_validate(data)
    except ValidationError as error:
        return explain_all(error)
    return []


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Raise UserError for a key of the endpoint among the overrides, before anything can repeat it."""
    if any(re.match(r"\W*serve\W+key\W*[=:]", o) for o in overrides):
        raise UserError(f"serve.key: {NO_KEY}")


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


def idle_settings(overrides: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Return which of the overrides have no effect in this configuration, and why."""
    found = [
        problem
        for text, p in parse_overrides(overrides)
        if not isinstance(p, Exception) and not text.startswith("~")
        if (problem := without_effect(p.key_or_group, data)) is not None
    ]
    return list(dict.fromkeys(found))


def other_types(overrides: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Return which overrides in ``_target_`` nodes have another type than the value in their file."""
    touched = [
        (text, p.key_or_group)
        for text, p in parse_overrides(overrides)
        if not isinstance(p, Exception) and _in_a_node(p.key_or_group) and not text.startswith(("+", "~"))
    ]
    if not touched:
        return []
    names = {text for text, _ in touched}
    base = compose_data([o for o in overrides if o not in names])
    return [problem for text, key in touched if (problem := type_problem(text, key, base, data)) is not None]


def _in_a_node(key: str) -> bool:
    return key.split(".")[0] in (*FILE_NODES, *OPEN_NODES) and "." in key


def type_problem(text: str, key: str, base: dict[str, Any], data: dict[str, Any]) -> str | None:
    """Return what is wrong where a value of a ``_target_`` node in ``data`` is of another type than in ``base``."""
    if not _in_a_node(key):
        return None
    was, now = _select(base, key), _select(data, key)
    if was is None or now is None:
        return None
    if isinstance(was, (int, float)) and not isinstance(was, bool):
        fits = isinstance(now, (int, float)) and not isinstance(now, bool)
    else:
        fits = isinstance(now, type(was))
    return None if fits else f"{text}: should be like {was!r}, of type {type(was).__name__}"


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


def _data_keys(data: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield f"{prefix}{name}"
            yield from _data_keys(value, f"{prefix}{name}.")


def _select(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def file_fault(error: BaseException) -> str:
    """Return one line about files that do not compose: for a fault in a YAML file its name and line."""
    cause: BaseException | None = error
    while cause is not None:
        mark = getattr(cause, "problem_mark", None)
        if mark is not None:
            column = f":{mark.column + 1}" if mark.column else ""
            return f"{mark.name}:{mark.line + 1}{column}: not valid YAML: {getattr(cause, 'problem', None) or cause}"
        cause = cause.__cause__ or cause.__context__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
