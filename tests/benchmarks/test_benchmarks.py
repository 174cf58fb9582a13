"""Every benchmark starts: the names that it imports exist, and those that need nothing run at a tiny size."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.training import make_data

from benchmarks.__main__ import TINY

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if p.name != "__init__.py")
WITHOUT_HELP = {"image_server", "litserve_peer", "loader_growth", "loader_peers"}  # parts of others


def imports(code: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what ``code`` and the programs that it holds as text import of this project."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("objrec", "benchmarks")):
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nfrom objrec" in node.value:
            yield from imports(node.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_names_that_it_imports_exist(path: Path) -> None:
    for module, name in imports(path.read_text()):
        found = importlib.import_module(module)
        assert hasattr(found, name) or find_spec(f"{module}.{name}"), f"{module}.{name}"


def run(name: str, *options: object, cwd: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [p.stem for p in FILES if p.stem not in WITHOUT_HELP])
def test_it_says_what_it_takes(name: str, tmp_path: Path) -> None:
    assert "usage" in run(name, "--help", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_runs_at_a_tiny_size(name: str, tmp_path: Path) -> None:
    assert run(name, *TINY[name], cwd=tmp_path).strip()


def test_duplicates_at_a_tiny_size(tmp_path: Path) -> None:
    assert "| 15 |" in run("dedup_growth", "--most", 1000, cwd=tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A zip of ``<class>/<image>.jpg``."""
    from PIL import Image

    folder = make_data(tmp_path / "data", train=12, valid=1) / "train"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for path in sorted(folder.rglob("*.png")):
            jpeg = path.with_suffix(".jpg")
            Image.open(path).save(jpeg)
            file.write(jpeg, jpeg.relative_to(folder))
    return tmp_path / "images.zip"


@pytest.mark.slow
def test_the_loader_without_peers_at_a_tiny_size(archive: Path, tmp_path: Path) -> None:
    options = ("--images", 64, "--size", 32, "--rounds", 1, "--peers")
    assert "objrec, decoded store" in run("loader", "--photos", archive, *options, cwd=tmp_path)


@pytest.mark.slow
def test_preprocessing_at_a_tiny_size(archive: Path, tmp_path: Path) -> None:
    run("preprocess", archive, "--rounds", 1, "--images", 4, "--large", 1, "--size", 32, cwd=tmp_path)
    assert "| 20 |" in run("preprocess_growth", archive, "--counts", 20, cwd=tmp_path)
