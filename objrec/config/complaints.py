"""What the schema refuses, in words of our own: a line for each key, with what it takes instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from objrec.config.errors import did_you_mean
from objrec.config.schema import Config

NO_KEY = (
    "a secret on a command line is seen by every user of the machine, and one in a settings file is saved with the "
    "run: set OBJREC_SERVE_KEY in the environment, or serve.key_file=PATH of a file with a key a line"
)
GLOBAL_GROUPS = ("experiment", "debug", "sweep")  # whose files may set any key
ELSEWHERE = {  # what other libraries call it -> our key
    "epochs": "train.max_epochs",
    "num_epochs": "train.max_epochs",
    "num_train_epochs": "train.max_epochs",
    "batch": "train.batch_size",
    "batch_size": "train.batch_size",
    "bs": "train.batch_size",
    "lr": "train.learning_rate",
    "lr0": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "imgsz": "preprocess.image_size",
    "img_size": "preprocess.image_size",
    "image_size": "preprocess.image_size",
    "input_size": "preprocess.image_size",
    "model": "backbone.name",
    "arch": "backbone.name",
    "model_name": "backbone.name",
    "pretrained": "backbone.pretrained",
    "weights": "backbone.weights",
    "dropout": "backbone.drop_rate",
    "data": "source=folder source.path",
    "data_dir": "source=folder source.path",
    "dataset": "source",
    "device": "compute.accelerator",
    "devices": "compute.devices",
    "gpus": "compute.devices",
    "amp": "compute.precision",
    "workers": "datamodule.num_workers",
    "num_workers": "datamodule.num_workers",
    "opt": "optimizer",
    "weight_decay": "optimizer.weight_decay",
    "wd": "optimizer.weight_decay",
    "momentum": "train.momentum",
    "sched": "scheduler",
    "patience": "callbacks=early_stopping callbacks.early_stopping.patience",
    "num_classes": "classes.names",
    "output": "run_dir",
    "output_dir": "run_dir",
    "project": "run_dir",
    "save_dir": "run_dir",
}
WORDS: dict[str, Callable[[dict[str, Any]], str]] = {  # pydantic's kind of complaint -> what the value should be
    "int_type": lambda c: "a whole number",
    "int_parsing": lambda c: "a whole number",
    "int_parsing_size": lambda c: "a whole number of fewer digits",
    "int_from_float": lambda c: "a whole number",
    "float_type": lambda c: "a number",
    "float_parsing": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "bool_type": lambda c: "true or false",
    "bool_parsing": lambda c: "true or false",
    "string_type": lambda c: "text; quote a number that is meant as text: '\"7\"'",
    "list_type": lambda c: "a list, as in [a,b]",
    "dict_type": lambda c: "a group of settings, as in {_target_: module.Class}",
    "model_type": lambda c: "a group of settings",
    "literal_error": lambda c: _one_of(c["expected"].replace(" or ", ", ").replace("'", "")),
    "greater_than": lambda c: f"above {c['gt']:g}",
    "greater_than_equal": lambda c: f"at least {c['ge']:g}",
    "less_than": lambda c: f"below {c['lt']:g}",
    "less_than_equal": lambda c: f"at most {c['le']:g}",
    "too_short": lambda c: f"a list of at least {c['min_length']}",
    "too_long": lambda c: f"a list of at most {c['max_length']}",
}


def _one_of(names: str) -> str:
    return f"one of {names}" if "," in names else names


def explain_all(error: ValidationError) -> list[str]:
    """Turn what pydantic found into lines, one a key: ``key=value: should be a whole number or auto``."""
    lines: list[str] = []
    wanted: dict[str, tuple[Any, list[str]]] = {}
    for e in error.errors():
        key = _key(e["loc"])
        if (special := list(_special(key, e))) or e["type"] == "value_error":
            lines += special or _own_words(key, e)
        else:
            word = WORDS[e["type"]](e.get("ctx") or {}) if e["type"] in WORDS else "of another kind"
            wanted.setdefault(key, (e["input"], []))[1].append(word)
    for key, (value, words) in wanted.items():
        shown = str(value) if len(str(value)) < 100 else f"{str(value)[:100]}..."
        lines.append(f"{key}={shown}: should be {' or '.join(dict.fromkeys(words))}")
    return list(dict.fromkeys(lines))


def _own_words(key: str, error: Any) -> list[str]:
    message = str(error["ctx"]["error"])
    return (f"{key}: {message}" if key else message).split("\n")


def _special(key: str, error: Any) -> Iterator[str]:
    if key == "serve.key":
        yield f"{key}: {NO_KEY}"
    elif error["type"] == "missing":
        yield f"{key}: has no value"
    elif error["type"] == "extra_forbidden":
        group, _, rest = key.partition(".")
        if group in GLOBAL_GROUPS and (isinstance(error["input"], dict) or rest in Config.model_fields):
            yield (
                f"{key}: the file that {group}=NAME chose lacks its first line '# @package _global_', so that its "
                f"settings would be put under {group}"
            )
        else:
            yield unknown_key(key, flatten_keys(Config))


def unknown_key(key: str, legal: Iterable[str]) -> str:
    """Return the message for a key that does not exist: with ours for the name that other libraries use."""
    legal = set(legal)
    ours = ELSEWHERE.get(key.rpartition(".")[2].lower().replace("-", "_"))
    if ours is not None and ours != key:
        return f"{key}: unknown key. Did you mean '{ours}'?"
    return f"{key}: unknown key.{did_you_mean(key, legal)}"


def _key(loc: tuple[int | str, ...]) -> str:
    """Return the dotted key of a complaint's place, without pydantic's names for the branches of a union."""
    legal = {part for key in flatten_keys(Config) for part in key.split(".")}
    parts = [str(p) for p in loc]
    return ".".join(p for i, p in enumerate(parts) if p in legal or i == 0 or not _is_branch(p))


def _is_branch(part: str) -> bool:
    names = ("int", "float", "bool", "str", "none", "literal", "list", "dict", "function", "constrained", "nullable")
    return part in names or any(part.startswith((f"{n}[", f"{n}-")) for n in names)


def flatten_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that the schema declares, sections included."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flatten_keys(field.annotation, f"{key}.")
