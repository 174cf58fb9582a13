"""The metrics that a training logs: of which epochs, and what to say when one is missing."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L

from objrec.config.errors import did_you_mean


def was_validated(trainer: L.Trainer) -> bool:
    """Whether the epoch that ends is one of those that are validated: the metrics are of an earlier one otherwise."""
    every: int = trainer.check_val_every_n_epoch or 1
    done: int = trainer.current_epoch + 1
    return done % every == 0


def not_logged(key: str, metric: str | None, logged: Iterable[str]) -> str:
    """Say that a metric which a setting names never came."""
    names = sorted(m for m in logged if not m.endswith(("_step", "_epoch")))
    return f"{key}: '{metric}' was not logged; logged: {', '.join(names)}.{did_you_mean(str(metric), names)}"
