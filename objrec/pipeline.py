"""``python -m objrec.pipeline [overrides]``: the five steps on this machine, cached."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from objrec.config.cli import command, group_lines, overrides_of

HELP = """Train an image classifier and serve it at a URL: ingest, preprocess, train, evaluate, deploy.
A step runs again only when its settings, its inputs, its code or its libraries changed.

usage: python -m objrec.pipeline [key=value ...] [--config-dir DIR]

examples:
  python -m objrec.pipeline                                  the built-in sample: no key, no network
  python -m objrec.pipeline classes.names=[apple,pear]       other classes
  python -m objrec.pipeline source=folder source.path=DIR    your own images, DIR/<class>/<image>
  python -m objrec.pipeline raw_data_dir=DIR                  the same, skipping ingest
  python -m objrec.pipeline train_dir=DIR valid_dir=DIR test_dir=DIR      your own splits: starts with training
  python -m objrec.pipeline model_dir=DIR test_dir=DIR       a trained model: evaluate and deploy it
  python -m objrec.pipeline train.max_epochs=20 force=train  settings; force=all runs every step

groups:
{groups}

Every setting and its default: python -m objrec.train --cfg job"""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running step is ended too
    sys.exit(command(HELP.format(groups=group_lines()), lambda arguments: run(overrides_of(arguments))))


def run(overrides: list[str]) -> int:
    """Compose, validate, run the five steps, print the summary."""
    from objrec.config.command_line import refuse_sweep
    from objrec.config.errors import UserError
    from objrec.config.load import load_config
    from objrec.deployment.service import refuse_other_systems
    from objrec.runner.display import Display
    from objrec.runner.runner import (
        RunRecord,
        StepFailed,
        check_run,
        forget_run,
        new_run_dir,
        point_latest,
        run_pipeline,
    )
    from objrec.serving.keys import read_keys
    from objrec.steps import load_steps

    refuse_sweep(overrides)
    config = load_config(overrides)
    if config.deploy.start and config.deploy.target == "local":  # said now, and not after the training
        refuse_other_systems()
        read_keys(config.serve.key_file)
    steps = load_steps()
    check_run(steps, config)
    run_dir = new_run_dir(config, "pipeline")
    try:
        with (run_dir / "pipeline.log").open("a") as log, Display(log) as display:
            record = run_pipeline(steps, config, overrides, run_dir=run_dir, display=display)
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except UserError:
        if not RunRecord.did_anything(run_dir) and config.run_dir is None:
            forget_run(run_dir)
        raise
    finally:
        if run_dir.exists() and config.run_dir is None:
            point_latest(run_dir)
    evaluated = record.step("evaluate").outputs
    print(f"accuracy  {record.accuracy:.4f}")
    print(f"report    {Path(evaluated['report_dir']) / 'report.html'}")
    print(f"endpoint  {record.endpoint_url or 'none'}")
    print(f"decision  {record.step('deploy').reason}")
    print(f"run       {run_dir / 'run.json'} ({record.seconds:.1f} s)")
    return 0


if __name__ == "__main__":
    main()
