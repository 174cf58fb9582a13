"""What a step shows on the platform's MLflow when it runs inside a job; elsewhere it shows nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

TRAINING_FILES = ("training/metrics.csv", "training/curves.png", "model.json", "config.yaml")


def in_a_job() -> bool:
    """Whether the platform has opened a run for this process."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI") and os.environ.get("MLFLOW_RUN_ID"))


def show(outputs: Mapping[str, Path]) -> None:
    """Log a step's results to the run of the job: numbers as metrics, the report and the curves as artifacts.

    A tracking server in trouble costs the images in the studio and not the result: a warning is printed.
    """
    if not in_a_job() or int(os.environ.get("RANK", "0")) != 0:
        return
    if not {"accuracy_file", "report_dir", "model_dir"} & set(outputs):
        return
    try:
        import mlflow  # takes seconds: only where there is something to show

        client = mlflow.MlflowClient()
        run = os.environ["MLFLOW_RUN_ID"]
        for name, value in _metrics(outputs).items():
            client.log_metric(run, name, value)
        if (report := outputs.get("report_dir")) is not None:
            client.log_artifacts(run, str(report), "report")
        if (model := outputs.get("model_dir")) is not None:
            for file in TRAINING_FILES:
                if (model / file).is_file():
                    client.log_artifact(run, str(model / file), "training" if "/" in file else None)
    except Exception as error:
        print(f"warning: the studio shows no metrics: {error}", file=sys.stderr)


def _metrics(outputs: Mapping[str, Path]) -> dict[str, float]:
    path = outputs.get("accuracy_file")
    if path is None:
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    return {
        f"test/{'acc' if k == 'accuracy' else k}": float(v)
        for k, v in data.items()
        if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
