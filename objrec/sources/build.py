"""From a config node to a source."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

from objrec.config.errors import UserError
from objrec.config.schema import Source as SourceConfig
from objrec.sources.base import Source


def build_source(node: SourceConfig, **context: Any) -> Source:
    """Construct the source that ``node`` names.

    Args:
        node: ``_target_`` and the arguments; those that all nodes share reach only the classes that have them.
        context: what the step adds (seed, path, ...), likewise.

    Raises:
        UserError: there is no such class, or it refuses the arguments.
    """
    module, _, name = node.target.rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"source._target_={node.target}: there is no such class ({error})") from error
    shared = {"path": node.path, "endpoint": node.endpoint, "licenses": node.licenses, **context}
    takes = inspect.signature(build).parameters
    arguments = {k: v for k, v in shared.items() if k in takes} | dict(node.model_extra or {})
    if unknown := [k for k in arguments if k not in takes]:
        raise UserError(f"source.{unknown[0]}: {name} has no such setting")
    return cast(Source, build(**arguments))
