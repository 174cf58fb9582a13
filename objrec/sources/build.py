"""From a config node to sources."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, cast

from objrec.config.errors import UserError
from objrec.config.schema import SourceSection as SourceConfig
from objrec.sources.base import Source


def build_sources(node: SourceConfig, **context: Any) -> Sequence[Source]:
    """Construct the source that ``node`` names, or all of ``source=[a,b]`` in order.

    Args:
        node: ``_target_`` and the arguments; those that all nodes share reach only the classes that have them.
        context: what the step adds (seed, path, api), likewise.

    Raises:
        UserError: there is no such class, or it refuses the arguments.
    """
    return [_build(member, context) for member in nodes_of(node)]


def nodes_of(node: SourceConfig) -> list[SourceConfig]:
    """The nodes of the sources in order: of ``source=[a,b]`` each with the settings that are given for all."""
    if not node.members:
        return [node]
    order: list[str] = (node.model_extra or {}).get("order") or list(node.members)
    common = {k: v for k, v in (node.model_extra or {}).items() if k != "order" and v is not None}
    common |= {k: v for k, v in (("licenses", node.licenses), ("endpoint", node.endpoint)) if v is not None}
    nodes = []
    for name in order:
        own = node.members[name]
        nodes.append(SourceConfig.model_validate(own | {k: v for k, v in common.items() if k in own}))
    return nodes


def uses_web(node: SourceConfig) -> bool:
    """Whether any of the sources has its images downloaded."""
    return not all(hasattr(_class(member), "read") for member in nodes_of(node))


def _build(node: SourceConfig, context: dict[str, Any]) -> Source:
    build = _class(node)
    name = node.target.rpartition(".")[2]
    shared = {"path": node.path, "endpoint": node.endpoint, "licenses": node.licenses, **context}
    takes = inspect.signature(build).parameters
    arguments = {k: v for k, v in shared.items() if k in takes} | dict(node.model_extra or {})
    if unknown := [k for k in arguments if k not in takes]:
        raise UserError(f"source.{unknown[0]}: {name} has no such setting")
    if absent := [k for k, p in takes.items() if p.default is p.empty and k not in arguments]:
        raise UserError(f"source.{absent[0]}: has no value, and {name} needs one")
    return cast(Source, build(**arguments))


def _class(node: SourceConfig) -> Any:
    module, _, name = node.target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"source._target_={node.target}: there is no such class ({error})") from error


def host_limits(node: SourceConfig) -> dict[str, int]:
    """Connections at once that the sources' hosts allow, where they say so."""
    limits: dict[str, int] = {}
    for member in nodes_of(node):
        limits |= getattr(importlib.import_module(member.target.rpartition(".")[0]), "HOST_LIMITS", {})
    return limits
