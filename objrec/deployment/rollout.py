"""Bring a registered model into production: try it, load it beside the old one, move the alias, move the traffic."""

from __future__ import annotations

import contextlib

from objrec.deployment import service
from objrec.deployment.service import Service
from objrec.model_registry.records import Record
from objrec.model_registry.store import FolderRegistry
from objrec.serving.settings import ServiceSettings


def roll_out(
    registry: FolderRegistry, record: Record, *, event: str = "promoted", start: ServiceSettings | None = None
) -> tuple[Record | None, Service | None]:
    """Serve ``record`` and return the record it replaced and the service, if there is one.

    A running service loads, warms and smoke-tests the model before the alias moves, and follows it at once.
    When anything fails, the alias is where it was and the old model serves on.

    Args:
        event: what the registry's log calls it.
        start: start a service with these settings where none is running.

    Raises:
        UserError: when the model is damaged, cannot be loaded or does not pass its smoke test.
    """
    running = service.find(registry.root)
    try:
        registry.check(record.sha256)
        if running is not None:
            running.control("prepare", sha256=record.sha256)
        before = registry.aliases()
        last = registry.promote(record, event=event)
        try:
            if running is not None:
                running.control("follow")
                if start is not None:
                    service.warn_if_settings_differ(running, start)
            elif start is not None:
                running = service.ensure_started(start)
        except BaseException:
            registry.restore(before, failed=record)
            raise
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk may be what went wrong
            registry.log("failed", record=record.model_dump(), reason=str(error))
        raise
    return last, running
