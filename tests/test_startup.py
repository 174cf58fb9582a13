"""What a command does not need it does not import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.imports import HEAVY, PROBE

ROOT = Path(__file__).resolve().parents[1]


def imported(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    status, modules = json.loads(done.stdout.rsplit("MODULES ", 1)[1])
    return status, set(modules)


@pytest.mark.parametrize(
    "command",
    [
        ["objrec.pipeline", "--help"],
        ["objrec.train", "--help"],
        ["objrec.train", "--cfg", "job"],
        ["objrec.evaluate", "--help"],
        ["objrec.export", "--help"],
        ["objrec.serve", "--help"],
        ["objrec.registry", "--help"],
        ["objrec.predict", "--help"],
        ["objrec.steps.train", "--help"],
        ["objrec.registry", "list"],
    ],
    ids=" ".join,
)
def test_no_heavy_import(command: list[str], workdir: Path) -> None:
    status, modules = imported(*command)
    assert status == 0
    assert not modules & HEAVY
    assert not list(workdir.iterdir())


def test_steps_other_than_train_import_no_torch() -> None:
    code = (
        "import sys\nfrom objrec.steps import load_steps\nload_steps()\n"
        "print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_azureml_is_not_a_package() -> None:
    assert not (ROOT / "azureml" / "__init__.py").exists()  # it would hide the azureml-* packages
