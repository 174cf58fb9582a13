"""Loggers beside ``metrics.csv``, each with the settings of the run; a resumed run stays one run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objrec.training.instantiate import instantiate


def make_loggers(nodes: Mapping[str, Any], *, training_dir: Path, runs_dir: Path) -> list[Any]:
    """Build what ``logger=`` names. Raises UserError.

    Args:
        nodes: of the config group.
        training_dir: takes what a logger writes to a folder, and the id of the MLflow run.
    """
    loggers = []
    for name, node in nodes.items():
        if node is None:
            continue
        options = {k: v for k, v in node.items() if k != "_target_"}
        if "MLFlow" in node["_target_"]:
            loggers.append(_mlflow(node["_target_"], options, training_dir, runs_dir, f"logger.{name}"))
        else:
            options.setdefault("save_dir", str(training_dir / "logs"))
            loggers.append(instantiate(node["_target_"], options, f"logger.{name}"))
    return loggers


def _mlflow(target: str, options: dict[str, Any], training_dir: Path, runs_dir: Path, key: str) -> Any:
    """Inside a cloud job the platform's server and the run that it opened; elsewhere a database under ``runs_dir``."""
    in_a_job = os.environ.get("MLFLOW_RUN_ID")
    if options.get("tracking_uri") is None and (server := os.environ.get("MLFLOW_TRACKING_URI")):
        options["tracking_uri"] = server
    elif options.get("tracking_uri") is None:
        runs_dir.mkdir(parents=True, exist_ok=True)
        options["tracking_uri"] = f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"  # MLflow refuses folders
    memory = training_dir / "checkpoints" / "mlflow_run"  # gone when the training is complete
    if options.get("run_id") is None:
        options["run_id"] = in_a_job or (memory.read_text() if memory.is_file() else None)
    logger = instantiate(target, options, key)
    if options["run_id"] is None and logger.run_id is not None:  # of several processes only the first has one
        memory.parent.mkdir(parents=True, exist_ok=True)
        memory.write_text(logger.run_id)
    return logger
