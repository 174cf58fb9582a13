"""Compose the configuration from ``configs/`` and overrides, and check all of it before any work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Config

OPEN_NODES = ("callbacks", "logger")  # `+callbacks.mine={_target_: ...}` may add a node here
PATH_KEYS = {
    *(f for f in Config.model_fields if f.endswith(("_dir", "_file"))),
    "source.path",
    "backbone.weights",
}


def config_dir() -> str:
    """The folder of the packaged configs: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "configs", package.parent / "configs"):
        if (place / "config.yaml").is_file():
            return str(place)
    raise UserError("the configs folder is missing from this installation: reinstall objrec")


def register_resolvers() -> None:
    """Register ``${objrec.or:a,b}`` (a, or b where a is null). Safe to call again."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("objrec.or", lambda a, b: b if a is None else a, replace=True)


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose and check the configuration.

    Args:
        overrides: Hydra overrides as typed on a command line, ``train.max_epochs=5``;
            ``--config-dir=DIR`` adds a folder.

    Raises:
        UserError: with every unknown key, unknown group option, wrong type, out-of-range value and contradiction.
    """
    overrides = [quote_path(o) for o in overrides]
    try:
        data = _compose(overrides)
    except Exception as error:
        raise UserError(_diagnose(overrides, error)) from error
    problems = [*_illegal_additions(overrides), *_check_open_nodes(overrides, data)]
    config, more = validate(data)
    if problems or more or config is None:
        raise UserError([*problems, *more])
    return config


def validate(data: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """Return the checked configuration, or None and every complaint."""
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        return None, [line for e in error.errors() for line in _explain(e)]


def quote_path(override: str) -> str:
    """Quote the value of a key that takes a path, so that ``model_dir=My models (2)`` needs no Hydra grammar."""
    key, sign, value = override.partition("=")
    plain = re.fullmatch(r"[\w./\\:@%+\-~?]*", value)
    if key.lstrip("+") not in PATH_KEYS or not sign or plain or value[:1] in "'\"[{" or "$" in value:
        return override
    if "," in value and all(re.fullmatch(r"[\w./\\:@%+\-~?]+", part) for part in value.split(",")):
        return override  # a sweep over paths
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def dump(config: BaseModel, *, keyed_only: bool = False) -> dict[str, Any]:
    """Return plain data of ``config`` with secrets masked; with ``keyed_only`` without what no cache key may hold."""
    data: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if keyed_only and marks.get("keyed") is False:
            continue
        value = getattr(config, name)
        if marks.get("secret") and value is not None:
            value = "***"
        data[field.alias or name] = dump(value, keyed_only=keyed_only) if isinstance(value, BaseModel) else value
    return {**data, **(config.model_extra or {})}


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    register_resolvers()
    folders = [o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir=")]
    plain = [o for o in overrides if not o.startswith("--config-dir=")]
    if folders:
        plain.append(f"hydra.searchpath=[{','.join('file://' + str(Path(f).resolve()) for f in folders)}]")
    GlobalHydra.instance().clear()  # compose may run many times in one process: tests, sweeps, notebooks
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("config", overrides=plain)
    data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def _explain(error: Any) -> Iterator[str]:
    """Turn one pydantic complaint into ``key: what is wrong``."""
    where = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("int", "literal", "list[")))
    if error["type"] == "extra_forbidden":
        yield f"{where}: unknown key.{did_you_mean(where, flatten_keys(Config))}"
    elif error["type"] == "missing":
        yield f"{where}: has no value"
    elif error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        yield from (f"{where}: {message}" if where else message).split("\n")
    else:
        message = error["msg"].replace("Input s", "s").replace("Value error, ", "")
        yield f"{where}={error['input']}: {message}"


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


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
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


def _illegal_additions(overrides: Sequence[str]) -> list[str]:
    """``+key=`` is for new nodes among callbacks and loggers; anywhere else it is a typo that Hydra would accept."""
    if not any(o.startswith("+") for o in overrides):
        return []
    found = []
    legal = set(flatten_keys(Config))
    closed = ("optimizer", "scheduler", "source")
    for text, parsed in _parsed(overrides):
        if isinstance(parsed, Exception) or not text.startswith("+"):
            continue
        key = parsed.key_or_group
        if key.split(".")[0] in closed and key not in legal and "." in key:
            section = key.split(".")[0]
            base = _compose(
                [o for o, p in _parsed(overrides) if not isinstance(p, Exception) and not o.startswith("+")]
            )
            known = [f"{section}.{k}" for k in _data_keys(base[section])]
            if key not in known:
                found.append(
                    f"{key}: unknown key.{did_you_mean(key, known)} (More arguments belong in a file: "
                    f"configs/{section}/<name>.yaml, chosen by {section}=<name>.)"
                )
    return found


def _check_open_nodes(overrides: Sequence[str], data: dict[str, Any]) -> list[str]:
    """Values of ``_target_`` nodes keep the type that their file gives them."""
    touched = [
        (text, p)
        for text, p in _parsed(overrides)
        if not isinstance(p, Exception)
        and p.key_or_group.split(".")[0] in ("optimizer", "scheduler", "callbacks", "logger")
        and "." in p.key_or_group
        and not text.startswith(("+", "~"))
    ]
    if not touched:
        return []
    names = {text for text, _ in touched}
    base = _compose([o for o in overrides if o not in names])
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


def _select(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _group_options(group: str, overrides: Sequence[str]) -> list[str] | None:
    """Names of the files in a config group, or None where there is no such group."""
    places = [config_dir(), *(o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir="))]
    folders = [Path(p) / group for p in places if (Path(p) / group).is_dir()]
    return sorted({f.stem for folder in folders for f in folder.glob("*.yaml")}) if folders else None


def _diagnose(overrides: Sequence[str], cause: Exception) -> list[str]:
    """Composition failed: find every override that is at fault, not only the first that Hydra stumbled on."""
    problems: list[str] = []
    good: list[str] = []
    values: list[tuple[str, Any]] = []
    for text, parsed in _parsed(overrides):
        if isinstance(parsed, Exception):
            problems.append(f"{text}: cannot be read as key=value; quote what is unusual, as in 'key=\"a b\"'")
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
            problems.append(f"{text}: several values need -m (--multirun)")
        elif wrong:
            problems.append(f"{text}: no such {key}.{did_you_mean(str(wrong[0]), options, what=f'{key} is one of')}")
        else:
            good.append(text)
    folders = [o for o in overrides if o.startswith("--config-dir=")]
    try:
        legal = set(_data_keys(_compose([*folders, *good])))
    except Exception as error:  # the files themselves are at fault
        return problems or [_first_line(error)]
    for text, parsed in values:
        key = parsed.key_or_group
        if parsed.is_sweep_override():
            problems.append(f"{text}: several values need -m (--multirun)")
        elif key in legal or key.startswith("hydra.") or (key.split(".")[0] in OPEN_NODES and text.startswith("+")):
            good.append(text)
        else:
            problems.append(f"{key}: unknown key.{did_you_mean(key, legal)}")
    try:
        problems += validate(_compose([*folders, *good]))[1]
    except Exception as error:
        problems.append(_first_line(error))
    return problems or [_first_line(cause)]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
