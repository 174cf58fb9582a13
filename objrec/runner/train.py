"""One training as a command or a trial: the data set first where none is given, then the model, then a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config


def train(config: Config, *, overrides: Sequence[str], run_dir: Path) -> Any:
    """Train as configured into ``run_dir/model`` and print the paths of the results; returns the ``ModelCard``.

    Args:
        overrides: what the user typed, for the steps that build the data set.
        run_dir: takes the model folder and the logs.

    Raises:
        UserError: a bad setting, or data that cannot be used.
    """
    from objrec.models.card import ModelCard
    from objrec.steps.base import restrict
    from objrec.steps.train import STEP

    data = data_dirs(config, overrides, run_dir)
    model_dir = run_dir / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    try:
        STEP.run(restrict(config, STEP), {k: data[k] for k in ("train_dir", "valid_dir")}, {"model_dir": model_dir})
    except KeyboardInterrupt:
        print(f"To resume, add run_dir={run_dir} to the same command", flush=True)
        raise
    card = ModelCard.load(model_dir)
    print(summary(card, config, model_dir, data.get("test_dir")))
    return card


def summary(card: Any, config: Config, model_dir: Path, test_dir: Path | None) -> str:
    """Return what a person wants to know after a training: how good, where, and what to do next."""
    if model_dir.is_relative_to(Path.cwd()):
        model_dir = model_dir.relative_to(Path.cwd())
    lines = {"best epoch": f"{card.metrics['epoch'] + 1:.0f} of {config.train.max_epochs}"}
    lines |= {name: f"{value:.4f}" for name, value in card.metrics.items() if "/" in name}
    lines["model"] = str(model_dir)
    images = {"metrics": "metrics.csv", "curves": "curves.png", "batch": "batch.png", "lr finder": "lr_finder.png"}
    lines |= {what: str(path) for what, n in images.items() if (path := model_dir / "training" / n).is_file()}
    lines["evaluate"] = f"python -m objrec.evaluate model_dir={model_dir} test_dir={test_dir or 'DIR'}"
    lines["predict"] = f"python predict.py IMAGE --model {model_dir}"
    width = max(map(len, lines))
    return "\n".join(f"{what:<{width}}  {text}" for what, text in lines.items())


def data_dirs(config: Config, overrides: Sequence[str], run_dir: Path) -> dict[str, Path]:
    """Return train_dir, valid_dir and, where it is known, test_dir: those given, or the cached outputs of the steps."""
    from objrec.runner.display import Display
    from objrec.runner.runner import check_run, run_pipeline
    from objrec.steps import load_steps
    from objrec.steps.base import leading_to

    given = {k: Path(v) for k in ("train_dir", "valid_dir", "test_dir") if (v := getattr(config, k)) is not None}
    if {"train_dir", "valid_dir"} <= set(given):
        return given
    if {"train_dir", "valid_dir"} & set(given):
        missing = "valid_dir" if "train_dir" in given else "train_dir"
        raise UserError(f"{missing} is missing: give both train_dir and valid_dir, or neither")
    steps = leading_to(load_steps(), "train_dir")
    check_run(steps, config)
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "data.log").open("a") as log, Display(log) as display:
        record = run_pipeline(steps, config, overrides, run_dir=run_dir, display=display)
    return {name: Path(path) for name, path in record.steps[-1].outputs.items()}
