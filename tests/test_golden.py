"""What users see, against files that are read when they change: ``make golden`` writes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from objrec.config.load import load_config
from objrec.config.schema import Config

GOLDEN = Path(__file__).parent / "golden"


def override_keys() -> str:
    from objrec.config.complaints import flatten_keys

    return "\n".join(sorted(flatten_keys(Config))) + "\n"


def step_help() -> str:
    from objrec.steps import load_steps
    from objrec.steps.command import help_text

    return "\n\n".join(f"== {step.name}\n{help_text(step)}" for step in load_steps()) + "\n"


def step_keys() -> str:
    """What the key of each step covers: a file, a setting or a library that is not here re-runs nothing."""
    from objrec.steps import load_steps
    from objrec.steps.keys import SourceIndex, key_parts

    lines = []
    for step in load_steps():
        parts = key_parts(step, load_config(), {}, SourceIndex(Path("nowhere")))
        lines += [f"== {step.name}", "sources:", *(f"  {name}" for name in sorted(parts.sources))]
        lines += ["settings:", *(f"  {name}" for name in sorted(parts.config)), "libraries:"]
        lines += [*(f"  {name}" for name in sorted(parts.libraries)), ""]
    return "\n".join(lines)


def command_help() -> str:
    from objrec import pipeline as pipeline
    from objrec import train
    from objrec.config.cli import group_lines

    return f"{pipeline.HELP}\n\n{train.HELP}\n\n{group_lines()}\n"


@pytest.mark.parametrize("name", ["override_keys", "step_help", "step_keys", "command_help"])
def test_golden(name: str, update_golden: bool) -> None:
    path = GOLDEN / f"{name}.txt"
    text = globals()[name]()
    if update_golden:
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} changed: make golden, and read the diff"
