"""The metrics that a training logs, and which way each of them is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BETTER = {"acc": "max", "f1": "max", "loss": "min", "ece": "min"}
LOGGED = ("train/acc", "train/loss", "val/acc", "val/ece", "val/f1", "val/loss")
HAVE_MODE = ("ModelCheckpoint", "EarlyStopping", "ReduceLROnPlateau")


def direction(metric: str) -> str | None:
    """Return ``max`` or ``min``, whichever is better; None for a metric that objrec does not log."""
    return BETTER[metric.rpartition("/")[2]] if metric in LOGGED else None


def with_mode(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node that monitors a metric with the ``mode`` that follows from it, where ``auto`` or nothing is set."""
    options = dict(node)
    if options.get("mode", "auto") != "auto" or not _has_mode(node):
        return options
    options.pop("mode", None)
    mode = direction(str(options.get("monitor")))
    return {**options, "mode": mode} if mode is not None else options


def mode_problem(node: Mapping[str, Any], key: str) -> str | None:
    """Return what is wrong with the mode of a node that monitors a metric, or None."""
    monitor, mode = node.get("monitor"), node.get("mode", "auto")
    if monitor is None or not _has_mode(node):
        return None
    follows = direction(str(monitor))
    if mode not in ("auto", "min", "max"):
        return f"{key}.mode={mode}: should be auto, min or max"
    if mode == "auto":
        return None if follows else f"{key}.mode: is a low or a high {monitor} better? Set {key}.mode=min or max"
    if follows not in (None, mode):
        return f"{key}.mode={mode}: for {monitor} it is {follows}, which mode=auto finds by itself"
    return None


def _has_mode(node: Mapping[str, Any]) -> bool:
    return "mode" in node or str(node.get("_target_")).rpartition(".")[2] in HAVE_MODE
