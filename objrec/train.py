"""``python -m objrec.train [overrides] [-m]``: training alone; ``-m`` sweeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from objrec.config.cli import INTERRUPTED, group_lines, guard, wants_help
from objrec.config.compose import expand_sources
from objrec.config.errors import UserError
from objrec.config.load import check_command_line, config_dir, register_resolvers, validate

HELP = """Fine-tune a backbone on labelled pictures; builds the data set first (cached) when none is given.

usage: python -m objrec.train [key=value ...] [-m] [--cfg job] [--config-dir DIR]

examples:
  python -m objrec.train                                     the embedded sample
  python -m objrec.train train_dir=DIR valid_dir=DIR         folders of <class>/<picture>
  python -m objrec.train train.learning_rate=0.01,0.05 -m    a sweep: every combination, then a table
  python -m objrec.train --cfg job                           every setting and its value
  python -m objrec.train --hydra-help                        what else Hydra can do

groups:
{groups}"""


def main() -> None:
    if wants_help(sys.argv[1:]):
        print(HELP.format(groups=group_lines()))
        return
    register_resolvers()
    sys.argv[1:] = expand_sources(sys.argv[1:])
    if not {"--cfg", "-c"} & set(sys.argv):  # showing a configuration composes it anyway
        status = guard(lambda: check_command_line(sys.argv[1:]))
        if status:
            sys.exit(status)
    import hydra

    from objrec.sweeps import Leaderboard

    hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")(task)()
    if Leaderboard.failed:
        sys.exit(1)


def task(node: Any) -> float | None:
    """One Hydra job: returns the best validation accuracy."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    results: list[float] = []
    status = guard(lambda: results.append(run_job(node, job)), catch_all=job.mode == RunMode.MULTIRUN)
    if not status:
        return results[0]
    if job.mode == RunMode.MULTIRUN and status != INTERRUPTED:
        return float("nan")  # one failed job does not end a sweep; the leaderboard and the exit status tell of it
    sys.exit(status)


def run_job(node: Any, job: Any) -> float:
    """Validate, build the data set where none is given, train into ``<run folder>/model``."""
    from omegaconf import OmegaConf

    config, problems = validate(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    if config is None:
        raise UserError(problems)
    run_dir = Path(job.runtime.output_dir)
    overrides = [*folders_of(job), *job.overrides.task]
    return float(train(config, overrides=overrides, run_dir=run_dir).metrics["val/acc"])


def train(config: Any, *, overrides: list[str], run_dir: Path) -> Any:
    """Train as configured; returns the ``ModelCard``.

    Args:
        overrides: what the user typed, for the steps that build the data set.
        run_dir: takes the model folder and the logs.

    Raises:
        UserError: a bad setting, or data that cannot be used.
    """
    from objrec.models.card import ModelCard
    from objrec.pipeline.step import restrict
    from objrec.steps.train import STEP

    train_dir, valid_dir = data_dirs(config, overrides, run_dir)
    model_dir = run_dir / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    STEP.run(restrict(config, STEP), {"train_dir": train_dir, "valid_dir": valid_dir}, {"model_dir": model_dir})
    card = ModelCard.load(model_dir)
    print(f"best epoch  {card.metrics['epoch'] + 1:.0f} of {config.train.max_epochs}")
    print(f"val/acc     {card.metrics['val/acc']:.4f}")
    print(f"model       {model_dir}")
    return card


def data_dirs(config: Any, overrides: list[str], run_dir: Path) -> tuple[Path, Path]:
    """Return train and valid folders: those given, or the cached outputs of ingest and preprocess."""
    from objrec.pipeline.progress import Display
    from objrec.pipeline.runner import run_pipeline
    from objrec.steps import load_steps

    given = (config.train_dir, config.valid_dir)
    if given[0] is not None and given[1] is not None:
        return Path(given[0]), Path(given[1])
    if given != (None, None):
        missing = "valid_dir" if given[1] is None else "train_dir"
        raise UserError(f"{missing} is missing: give both train_dir and valid_dir, or neither")
    steps = load_steps(("ingest", "preprocess"))
    if config.raw_data_dir is not None:
        steps = steps[1:]
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "data.log").open("a") as log, Display(log) as display:
        record = run_pipeline(steps, config, overrides, run_dir=run_dir, display=display)
    outputs = record.step("preprocess").outputs
    return Path(outputs["train_dir"]), Path(outputs["valid_dir"])


def folders_of(job: Any) -> list[str]:
    """Return ``--config-dir`` flags for the steps' processes."""
    own = Path(config_dir()).resolve()
    paths = [Path(s.path) for s in job.runtime.config_sources if s.schema == "file"]
    return [f"--config-dir={p}" for p in paths if p.resolve() != own]


if __name__ == "__main__":
    main()
