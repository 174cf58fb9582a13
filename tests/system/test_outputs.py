"""What objrec did not write survives: every port of every step, and every command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from helpers.pipeline_driver import run

from objrec import evaluate, export, train
from objrec import pipeline as pipeline
from objrec import registry as registry_command
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.model_registry.store import FolderRegistry
from objrec.runner.given import steps_given
from objrec.runner.runner import point_latest
from objrec.steps import load_steps
from objrec.steps.base import Port, Step
from objrec.steps.command import execute
from objrec.submit import command as submit
from objrec.system.outputs import check, claim, placed

ROOT = Path(__file__).resolve().parents[2]
STEPS = load_steps()
OUTPUTS = [(step, port) for step in STEPS for port in step.outputs]
SMALL = [
    "classes.names=[apple,pear]",
    "ingest.num_images=24",
    "preprocess.image_size=32",
    "preprocess.exact_split=true",
]


def write(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """What a step does here."""
    for path in outputs.values():
        (path / "made.txt" if path.is_dir() else path).write_text("made")


@cache
def defaults() -> Config:
    return load_config()


def stubbed(step: Step) -> Step:
    return replace(step, run=write)


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "precious.txt").write_text("mine")
    return path


def ports_of(step: Step, root: Path) -> dict[str, str]:
    """Paths for the ports of a step that are settings of their own; the inputs exist."""
    ports = {}
    for port in step.inputs:
        if port.config is None:
            place = root / "in" / port.name
            if port.kind == "folder":
                folder_of(place)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("mine")
            ports[port.name] = str(place)
    return ports | {port.name: str(root / "out" / port.name) for port in step.outputs}


def state(root: Path) -> dict[str, str]:
    """Every file but those of the cache, with its content."""
    return {
        str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file() and ".objrec/" not in str(p)
    }


def refused(step: Step, ports: dict[str, str], root: Path, said: str) -> None:
    before = state(root)
    with pytest.raises(UserError, match=said):
        execute(stubbed(step), defaults().model_copy(update=ports))
    assert state(root) == before


Spoil = Callable[[Path, Port], Path]


def there(place: Path, port: Port) -> Path:
    if port.kind == "folder":
        return folder_of(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    return place


def of_another_kind(place: Path, port: Port) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    if port.kind == "folder":
        place.write_text("mine")
        return place
    return folder_of(place)


def linked(place: Path, port: Port) -> Path:
    there(place.with_name("elsewhere"), port)
    place.symlink_to("elsewhere")
    return place


def roundabout(place: Path, port: Port) -> Path:
    there(place, port)
    folder_of(place.parent / "other")
    return place.parent / "other" / ".." / place.name


@pytest.mark.parametrize("spoil", [there, of_another_kind, linked, roundabout])
@pytest.mark.parametrize(("step", "port"), OUTPUTS, ids=lambda value: value.name)
def test_an_output_that_objrec_did_not_write_is_refused(workdir: Path, step: Step, port: Port, spoil: Spoil) -> None:
    ports = ports_of(step, workdir)
    ports[port.name] = str(spoil(workdir / "out" / port.name, port))
    refused(step, ports, workdir, port.name)


@pytest.mark.parametrize(("step", "port"), OUTPUTS, ids=lambda value: value.name)
def test_what_stands_where_an_output_is_built_survives(workdir: Path, step: Step, port: Port) -> None:
    folder_of(workdir / "out" / f"{port.name}.partial")
    ports = ports_of(step, workdir)
    if port.kind == "folder":
        refused(step, ports, workdir, rf"{port.name}.partial exists")
    else:
        execute(stubbed(step), defaults().model_copy(update=ports))
    assert (workdir / "out" / f"{port.name}.partial" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(("step", "port"), OUTPUTS, ids=lambda value: value.name)
def test_ours_is_replaced_until_someone_puts_a_file_there(workdir: Path, step: Step, port: Port) -> None:
    ports = ports_of(step, workdir)
    for _ in range(2):
        execute(stubbed(step), defaults().model_copy(update=ports))
    place = Path(ports[port.name])
    assert (place / "made.txt" if port.kind == "folder" else place).read_text() == "made"
    assert not [p for p in state(workdir) if "partial" in p or ".old" in p]
    (place / "notes.txt" if port.kind == "folder" else place).write_text("mine")
    refused(step, ports, workdir, "notes.txt, which objrec did not write" if port.kind == "folder" else "was changed")


PAIRS = [(s, i, o) for s in STEPS for i in s.inputs for o in s.outputs if i.config is None]


@pytest.mark.parametrize(("step", "source", "port"), PAIRS, ids=lambda value: value.name)
def test_no_output_is_an_input_or_inside_or_around_one(workdir: Path, step: Step, source: Port, port: Port) -> None:
    ports = ports_of(step, workdir)
    given = Path(ports[source.name])
    for place in (given, given / "new", given.parent, given.parent / "x" / ".." / given.name):
        refused(step, {**ports, port.name: str(place)}, workdir, port.name)
    (workdir / "link").symlink_to(given)
    refused(step, {**ports, port.name: "link/new"}, workdir, port.name)


def test_two_outputs_are_two_places(workdir: Path) -> None:
    step = STEPS[3]
    ports = ports_of(step, workdir)
    refused(step, {**ports, "accuracy_file": f"{ports['report_dir']}/accuracy.json"}, workdir, "around the output")


def test_an_unfinished_folder_of_ours_is_known_again(workdir: Path) -> None:
    def interrupted(resumes: bool) -> None:
        with pytest.raises(KeyboardInterrupt), placed("model_dir", Path("model"), "folder", resumes=resumes) as place:
            (place / "half").write_text("half")
            raise KeyboardInterrupt

    interrupted(resumes=False)
    with placed("model_dir", Path("model"), "folder", resumes=True) as place:
        assert (place / "half").is_file()
    interrupted(resumes=False)
    Path("model.partial").rename("moved")
    folder_of(Path("model.partial"))
    assert "model.partial exists" in check({"model_dir": (Path("model"), "folder")}, {})[0]


def test_a_file_that_comes_while_a_step_works_survives(workdir: Path) -> None:
    with pytest.raises(UserError, match="the result is in"), placed("report_dir", Path("out"), "folder") as place:
        (place / "made").write_text("made")
        folder_of(Path("out"))
    assert Path("out/precious.txt").read_text() == "mine" and Path("out.partial/made").is_file()


def test_a_jobs_own_output_passes_and_nothing_else(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_RUN_ID", "node")
    Path("mount").mkdir()
    for _ in range(2):  # another rank, or a second try on another node
        with placed("model_dir", Path("mount"), "folder", resumes=True) as place:
            (place / "made").write_text("made")
            assert place == (workdir / "mount")
    folder_of(Path("thesis"))
    with pytest.raises(UserError, match="objrec did not write it"), placed("model_dir", Path("thesis"), "folder"):
        pass


COMMANDS: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "pipeline": (pipeline.run, ["run_dir=thesis"]),
    "pipeline cache": (pipeline.run, ["cache_dir=thesis"]),
    "pipeline report": (pipeline.run, ["report_dir=thesis"]),
    "pipeline accuracy": (pipeline.run, ["accuracy_file=thesis/precious.txt"]),
    "pipeline endpoint": (pipeline.run, ["endpoint_file=thesis/precious.txt"]),
    "pipeline model": (pipeline.run, ["model_dir=thesis"]),
    "pipeline splits": (pipeline.run, ["train_dir=thesis", "valid_dir=thesis"]),
    "pipeline in its input": (pipeline.run, ["raw_data_dir=thesis", "runs_dir=thesis/runs"]),
    "train": (train.prepare, ["run_dir=thesis"]),
    "train -m": (train.prepare, ["-m", "seed=1,2", "run_dir=thesis"]),
    "train cache": (train.prepare, ["cache_dir=thesis"]),
    "train hydra": (train.prepare, ["hydra.run.dir=thesis"]),
    "train hydra -m": (train.prepare, ["-m", "seed=1,2", "hydra.sweep.dir=thesis"]),
    "train model": (train.prepare, ["model_dir=thesis"]),
    "evaluate": (evaluate.run, ["model_dir=in", "test_dir=in", "run_dir=thesis"]),
    "evaluate report": (evaluate.run, ["model_dir=in", "test_dir=in", "report_dir=thesis", "accuracy_file=new"]),
    "evaluate in its input": (evaluate.run, ["model_dir=in", "test_dir=thesis", "run_dir=thesis/run"]),
    "export": (export.run, ["model_dir=in", "test_dir=in", "export_dir=thesis"]),
    "export run": (export.run, ["model_dir=in", "test_dir=in", "run_dir=thesis"]),
    "export in its input": (export.run, ["model_dir=in", "test_dir=thesis", "export_dir=thesis/new"]),
    "submit": (submit.run, ["dry_run=true", "run_dir=thesis"]),
    "submit cache": (submit.run, ["dry_run=true", "cache_dir=thesis"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_leaves_a_folder_of_the_users_alone(workdir: Path, name: str) -> None:
    folder_of(workdir / "thesis")
    folder_of(workdir / "in")
    before = state(workdir)
    action, arguments = COMMANDS[name]
    with pytest.raises(UserError):
        action(arguments)
    assert state(workdir) == before


@pytest.mark.parametrize("words", [["gc"], ["promote", "production"], ["rollback"]], ids=" ".join)
def test_a_folder_is_no_registry(workdir: Path, words: list[str]) -> None:
    folder_of(workdir / "thesis" / "models")
    before = state(workdir)
    assert registry_command.main([*words, "registry_dir=thesis"]) == 2
    assert state(workdir) == before


def test_what_was_put_into_a_registered_model_survives_its_removal(workdir: Path) -> None:
    registry = FolderRegistry(Path("registry"))
    model = folder_of(registry.model_dir("0" * 64))
    (model / "model.onnx").write_text("ours")
    (registry.root / "registry.jsonl").write_text("")
    assert registry.gc(keep=0) == ["0" * 64]
    assert not model.exists()
    assert [p.name for p in registry.root.glob("kept/*/*")] == ["precious.txt"]


def test_a_folder_of_ours_is_claimed_once(workdir: Path) -> None:
    claim(Path("run"), "run_dir")
    folder_of(Path("run/notes"))
    claim(Path("run"), "run_dir")
    Path("file").write_text("mine")
    for name in ("file", "run/notes"):
        with pytest.raises(UserError, match=f"run_dir={name}"):
            claim(Path(name), "run_dir")


def test_latest_of_the_users_stays(workdir: Path) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/latest").write_text("mine")
    point_latest(Path("runs/one"))
    assert Path("runs/latest").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "steps", "said"),
    [
        (["raw_data_dir"], ["ingest"], ""),
        (["train_dir", "valid_dir", "test_dir"], ["ingest", "preprocess"], ""),
        (["model_dir", "test_dir"], ["ingest", "preprocess", "train"], ""),
        (["train_dir", "valid_dir"], [], "test_dir is missing"),
        (["model_dir"], [], "test_dir is missing"),
        (["train_dir"], [], "valid_dir is missing"),
        (["valid_dir", "test_dir"], [], "train_dir is missing"),
        (["test_dir"], [], "test_dir: needs"),
    ],
    ids=str,
)
def test_what_the_user_gives_is_an_input(workdir: Path, given: list[str], steps: list[str], said: str) -> None:
    for name in given:
        folder_of(workdir / name)
    config = load_config([f"{name}={name}" for name in given])
    if said:
        with pytest.raises(UserError, match=said):
            steps_given(STEPS, config)
    else:
        assert list(steps_given(STEPS, config)) == steps


def test_given_splits_are_neither_made_nor_touched(workdir: Path) -> None:
    names = ("train_dir", "valid_dir", "test_dir")
    for name in names:
        folder_of(workdir / name)
    record, _ = run([f"{name}={name}" for name in names])
    assert [(s.status, s.reason) for s in record.steps] == [("given", "train_dir is given")] * 2
    assert record.step("preprocess").outputs == {name: name for name in names}
    assert all((workdir / name / "precious.txt").is_file() for name in names)
    with pytest.raises(UserError, match="raw_data_dir=nowhere: there is no such folder"):
        run(["raw_data_dir=nowhere"])


def test_images_of_ones_own_are_read_and_survive_in_the_store_too(workdir: Path) -> None:
    record, _ = run(SMALL)
    mine = workdir / "mine"
    Path(record.step("ingest").outputs["raw_data_dir"]).rename(mine)
    before = sorted(p for p in mine.rglob("*"))
    record, _ = run([*SMALL, "raw_data_dir=mine"])
    assert [s.status for s in record.steps] == ["given", "reused"]
    assert sorted(p for p in mine.rglob("*")) == before
    Path(record.step("preprocess").outputs["train_dir"], "apple", "notes.txt").write_text("mine")
    record, _ = run([*SMALL, "raw_data_dir=mine"])
    assert record.step("preprocess").status == "ran"
    assert [p.read_text() for p in workdir.glob(".objrec/cache-kept/*/train_dir/apple/notes.txt")] == ["mine"]


def test_clean_keeps_what_cannot_be_made_again() -> None:
    done = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True)
    removed = [word for line in done.stdout.splitlines() if line.startswith("rm ") for word in line.split()[2:]]
    assert removed == [".objrec/cache", ".venv"]
