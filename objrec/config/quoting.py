"""Values as users type them, in the words of Hydra's grammar: names of any language and paths need no quotes."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from objrec.config.compose import quote_text
from objrec.config.schema import Config

PLAIN = re.compile(r"[\w./\\:@%+\-?*|$=~ ]*", re.ASCII)  # what Hydra's grammar reads as it stands
SIMPLE = re.compile(r"[\w./\\:@%+\-?]+", re.ASCII)  # one of several paths of a sweep
NOT_TEXT = re.compile(r"[\d._+\-]+(e[\d+\-]+)?|true|false|nan|inf", re.IGNORECASE)  # what it would not take for text
PIECES = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[\[\],{}]|[^\[\],{}]+""")
CALL = re.compile(r"[a-z_]+\(.*\)", re.DOTALL)  # choice(...), glob(...)


def leaves(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic's ``FieldInfo``) for every setting that is not a section."""
    for name, info in model.model_fields.items():
        key = f"{prefix}{info.alias or name}"
        section = next((k for k in _kinds(info.annotation) if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if section is not None:
            yield from leaves(section, f"{key}.")
        else:
            yield key, info


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of, without None; ``list[str]`` is one."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation is not type(None):
        yield annotation


PATH_KEYS = {
    k for k, info in leaves() if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("path")
}
TEXT_KEYS = {k for k, info in leaves() if set(_kinds(info.annotation)) == {str}}
NAME_LISTS = {k for k, info in leaves() if set(_kinds(info.annotation)) == {list[str]}}


def quote(override: str, *, sweeps: bool = False) -> str:
    """Quote in ``key=value`` what Hydra's grammar does not read as it is meant.

    ``model_dir=My models (2)``, ``classes.names=[Äpfel,0]`` and ``run_dir=2024`` are text without more.

    Args:
        sweeps: several values, as in ``-m source.path=a,b``, stay several.
    """
    key, sign, value = override.partition("=")
    key = key.lstrip("+")
    if override.startswith("-") or not sign or value[:1] in ("'", '"', "") or value == "null" or "${" in value:
        return override
    if (sweeps or key not in PATH_KEYS) and (CALL.fullmatch(value) or "{" in value):
        return override
    head = override[: -len(value)]
    if key in PATH_KEYS:
        several = sweeps and "," in value and all(SIMPLE.fullmatch(part) for part in value.split(","))
        plain = SIMPLE.fullmatch(value) and not NOT_TEXT.fullmatch(value)
        return override if several or plain else head + _quoted(value)
    if key in TEXT_KEYS and "," not in value:
        return head + _bare(value, text=True)
    pieces = PIECES.findall(value)
    text = key in NAME_LISTS and value.startswith("[")
    return head + "".join(p if p[:1] in "[],{}'\"" else _bare(p, text=text) for p in pieces)


def _bare(piece: str, *, text: bool) -> str:
    """Quote an unquoted piece, not the spaces around it, where it would not be read as the text that it is."""
    word = piece.strip()
    if not word or word == "null" or (PLAIN.fullmatch(word) and not (text and NOT_TEXT.fullmatch(word))):
        return piece
    start = piece.index(word)
    return piece[:start] + _quoted(word) + piece[start + len(word) :]


def _quoted(text: str) -> str:
    return f"'{quote_text(text)}'"
