"""docs/architecture.md is true: its floors, its paths, its commands, and one definition of each thing."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
SOURCES = {str(p.relative_to(ROOT)): p for p in sorted((ROOT / "objrec").rglob("*.py"))}


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(name, ast.parse(path.read_text())) for name, path in SOURCES.items()]


def test_the_page_shows_the_floors_that_are_checked() -> None:
    block = re.search(r"```floors\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    drawn = [{name.strip() for name in line.split("#")[0].split("|")} for line in block[1].splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c for c in contracts if c["type"] == "layers")["layers"]
    assert drawn == [{name.strip().removeprefix("objrec.") for name in layer.split("|")} for layer in layers]
    folders = {p.name for p in (ROOT / "objrec").iterdir() if (p / "__init__.py").is_file()}
    commands = {p.stem for p in (ROOT / "objrec").glob("*.py")} - {"__init__"}
    assert set().union(*drawn) == folders | commands


EXAMPLES = {"stripes", "count", "resnet34"}  # what CONTRIBUTING.md adds
TOP = "objrec|configs|docs|tests|azureml|benchmarks"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_modules_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = re.findall(rf"(?<![\w/.-])((?:{TOP})/[\w./-]+\.(?:py|md|yaml|html|txt)|(?:{TOP})/(?:[\w-]+/)+)", text)
    if page == "docs/architecture.md":  # the table of modules: names beside their folder
        for row in re.finditer(r"^\| `(objrec/\w*/?)` \| (.*)\|$", text, re.MULTILINE):
            paths += [row[1] + name for name in re.findall(r"`([\w/]+(?:\.py|/))`", row[2])]
    modules = re.findall(r"(?<![\w/.-])((?:objrec|benchmarks)(?:\.\w+)+)", text)
    assert [p for p in paths if Path(p).stem not in EXAMPLES and not (ROOT / p).exists()] == []
    assert [
        m for m in modules if not module_exists(m) and m.rpartition(".")[2] not in EXAMPLES | {"StripesSource"}
    ] == []


def module_exists(name: str) -> bool:
    """Whether it is a module or a package, or a name in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        if place.with_suffix(".py").is_file() or (count == len(parts) and (place / "__init__.py").is_file()):
            source = place.with_suffix(".py")
            return count == len(parts) or re.search(rf"\b{parts[count]}\b", source.read_text()) is not None
    return False


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("http") or ((ROOT / page).parent / target).exists(), target


def test_every_command_is_documented() -> None:
    for command in (ROOT / "objrec").glob("*.py"):
        if command.stem not in ("__init__", "api"):
            assert f"`{command.name}`" in PAGE
            names = (f"python -m objrec.{command.stem}", f"python {command.name}")
            assert any(name in (ROOT / "README.md").read_text() for name in names), command.name


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for name, tree in trees():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {k: v for k, v in places.items() if len(v) > 1} == {}


def used(tree: ast.Module) -> set[str]:
    """Attributes and functions of a module: ``fcntl.flock``, ``def softmax``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.FunctionDef):
            found.add(f"def {node.name}")
    return found


@pytest.mark.parametrize(
    ("thing", "places"),
    [
        ("fcntl.flock", {"objrec/system/files.py", "objrec/sweeps/sampling.py"}),  # the latter: Optuna's own lock
        ("os.replace", {"objrec/system/files.py"}),
        ("os.sched_getaffinity", {"objrec/system/cores.py"}),
        (
            "hashlib.file_digest",
            {"objrec/system/files.py", "objrec/ingest/store.py"},
        ),  # the latter: and still has it open
        ("def file_sha256", {"objrec/system/files.py"}),
        ("def softmax", {"objrec/inference/scores.py"}),
        ("def mcnemar", {"objrec/inference/paired_test.py"}),
    ],
)
def test_each_thing_has_one_definition(thing: str, places: set[str]) -> None:
    assert {name for name, tree in trees() if thing in used(tree)} <= places
