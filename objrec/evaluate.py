"""``python -m objrec.evaluate model_dir=MODEL test_dir=TEST``: any model folder on any folder of labelled images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from objrec.config.cli import command, overrides_of

HELP = """Evaluate a model on labelled images: accuracy with a confidence interval, and an HTML report.

usage: python -m objrec.evaluate model_dir=MODEL test_dir=TEST [key=value ...]

  model_dir=DIR               a model folder (model.json, model.onnx, model.safetensors)
  test_dir=DIR                DIR/<class>/<image>; classes are matched by name, a subset is fine
  train_dir=DIR               also search these for copies of test images
  raw_data_dir=DIR            also report sources and licences, from its manifest.jsonl
  evaluate.compare=MODEL      also compare a second model on the same images, with a paired test
  evaluate.unknown_dir=DIR    also out-of-distribution images: how reliably are they rejected?
  evaluate.slices=true        also accuracy by image size, source and licence
  evaluate.robustness=true    also accuracy under blur, noise, JPEG and brightness
  accuracy_file=FILE report_dir=DIR    where to write; default: a new folder under runs/evaluate

Every setting and its default: python -m objrec.train --cfg job"""
NAMED = 5  # unreadable images that are named on the terminal; the report names more


def main() -> None:
    sys.exit(command(HELP, lambda arguments: run(overrides_of(arguments))))


def run(overrides: list[str]) -> None:
    """Evaluate and say what was found. Raises UserError for what the user can mend."""
    metrics, report = measure(overrides)
    print(summary(metrics))
    print(f"report    {report}")


def measure(overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """Evaluate; returns the content of ``metrics.json`` and the report. Raises UserError for what the user can mend."""
    from objrec.config.errors import UserError
    from objrec.config.load import load_config
    from objrec.runner.given import inputs_of
    from objrec.runner.runner import check_folders, forget_run, new_run_dir, point_latest
    from objrec.steps.command import execute
    from objrec.steps.evaluate import STEP

    config = load_config(overrides)
    run_dir = None
    if config.accuracy_file is None or config.report_dir is None:
        check_folders(config, inputs_of([STEP], config))
        run_dir = new_run_dir(config, "evaluate")
    places = {
        "accuracy_file": config.accuracy_file or str(Path(run_dir or "") / "accuracy.json"),
        "report_dir": config.report_dir or str(Path(run_dir or "") / "report"),
    }
    try:
        execute(STEP, config.model_copy(update=places))
    except UserError:
        if run_dir is not None and config.run_dir is None:
            forget_run(run_dir)
        raise
    if run_dir is not None and config.run_dir is None:
        point_latest(run_dir)
    report_dir = Path(places["report_dir"])
    return json.loads((report_dir / "metrics.json").read_text(encoding="utf-8")), report_dir / "report.html"


def summary(metrics: dict[str, Any]) -> str:
    """Return the lines for the terminal, from the content of ``metrics.json``."""
    low, high = metrics["confidence_interval"]
    lines = [
        f"accuracy  {metrics['accuracy']:.4f} ({metrics['num_correct']} of {metrics['num_images']};"
        f" 95 % interval {low:.4f} to {high:.4f})",
        f"macro F1  {metrics['macro_f1']:.4f}",
        f"log loss  {metrics['log_loss']:.4f}, calibration error {metrics['ece']:.4f}",
    ]
    if unreadable := metrics["unreadable"]:
        named = "; ".join(f"{path} ({why})" for path, why in list(unreadable.items())[:NAMED])
        rest = f"; and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        lines.append(f"unreadable, counted as wrong: {len(unreadable)}: {named}{rest}")
    if pairs := metrics["near_duplicates"]["pairs"]:
        lines.append(f"warning: {len(pairs)} test images look like training images, see the report")
    if other := metrics.get("compare"):
        lines.append(
            f"compared  {other['other']['accuracy']:.4f} of the other model; only this one right"
            f" {other['only_this_right']}, only the other {other['only_other_right']},"
            f" McNemar p = {other['mcnemar_p']:.3g}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
