"""``python -m objrec.train [overrides] [-m]``: training alone; ``-m`` sweeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.config.cli import group_lines, guard, wants_help
from objrec.config.compose import expand_sources
from objrec.config.errors import UserError
from objrec.config.load import config_dir, register_resolvers, validate

HELP = """Fine-tune a backbone on labelled images. Without a data set, builds one first (cached).

usage: python -m objrec.train [key=value ...] [-m] [--cfg job] [--config-dir DIR]

examples:
  python -m objrec.train                                     the built-in sample
  python -m objrec.train train_dir=DIR valid_dir=DIR         folders of <class>/<image>
  python -m objrec.train --cfg job                           every setting and its value
  python -m objrec.train --hydra-help                        Hydra's own options

sweeps: each ends with a table, a plot and the command of the best trial (docs/sweeps.md):
  python -m objrec.train -m train.learning_rate=0.01,0.05 optimizer=sgd,adamw     every combination
  python -m objrec.train -m sweep=optuna sweep.max_trials=50                      learns from earlier trials
  python -m objrec.train -m sweep=random 'train.learning_rate=tag(log, interval(0.001, 0.1))'
  python -m objrec.train -m ... run_dir=DIR                                       resumes an interrupted sweep
  python -m objrec.train -m ... sweep.max_concurrent_trials=4                     trials in parallel
  python -m objrec.train -m ... hydra/launcher=joblib                             or submitit_slurm, ray

groups:
{groups}"""


def main() -> None:
    if wants_help(sys.argv[1:]):
        print(HELP.format(groups=group_lines()))
        return
    register_resolvers()
    arguments: list[str] = []
    if status := guard(lambda: arguments.extend(prepare(sys.argv[1:]))):
        sys.exit(status)
    sys.argv[1:] = arguments
    import hydra

    hydra.main(version_base="1.3", config_path=config_dir(), config_name="config")(task)()


def prepare(arguments: Sequence[str]) -> list[str]:
    """Check the command line and where it writes, before Hydra does; return Hydra's arguments. Raises UserError."""
    from objrec.config.command_line import check_command_line, sort_arguments
    from objrec.runner.given import inputs_of
    from objrec.runner.runner import check_folders
    from objrec.steps import load_steps
    from objrec.steps.base import leading_to
    from objrec.system.outputs import claim, claim_cache

    line = sort_arguments(arguments)
    config = check_command_line(line)
    words = [*expand_sources(line.for_hydra), *(["-m"] if line.multirun else [])]
    if line.multirun:
        from hydra.core.plugins import Plugins

        from hydra_plugins.objrec_trial_sweeper import TrialSweeper

        Plugins.instance().register(TrialSweeper)  # Hydra finds it alone, but in an editable installation
    if config is None:
        return words
    if config.model_dir is not None:
        raise UserError(
            "model_dir: objrec.train writes to run_dir=DIR, the model to DIR/model; objrec.steps.train takes "
            "model_dir=DIR"
        )
    check_folders(config, inputs_of(leading_to(load_steps(), "model_dir"), config))
    claim_cache(Path(config.cache_dir))
    if config.run_dir is not None:
        claim(Path(config.run_dir), "run_dir")
    return words


def task(node: Any) -> float | None:
    """One Hydra job: a training, or a trial of a sweep that one of Hydra's launchers started."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from objrec.runner.train import train
    from objrec.sweeps.trial_run import run_trial
    from objrec.system.outputs import mark

    job = HydraConfig.get()
    config, problems = validate(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
    mark(Path(job.runtime.output_dir))  # given as run_dir= another time, it is known as ours
    folder, overrides = Path(job.runtime.output_dir), [*folders_of(job), *job.overrides.task]
    if job.mode == RunMode.MULTIRUN:  # a trial that fails does not end its sweep; its result tells of it
        return run_trial(config or UserError(problems), overrides, folder).metrics.get("val/acc")
    results: list[float] = []

    def run() -> None:
        if config is None:
            raise UserError(problems)
        results.append(train(config, overrides=overrides, run_dir=folder).metrics["val/acc"])

    if status := guard(run):
        sys.exit(status)
    return results[0]


def folders_of(job: Any) -> list[str]:
    """Return ``--config-dir`` flags for the steps' processes."""
    own = Path(config_dir()).resolve()
    paths = [Path(s.path) for s in job.runtime.config_sources if s.schema == "file"]
    return [f"--config-dir={p}" for p in paths if p.resolve() != own]


if __name__ == "__main__":
    main()
