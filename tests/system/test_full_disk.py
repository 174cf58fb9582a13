"""A full disk is one line that says what could be freed; nothing wrong is kept, and the rerun works."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.data import ROOT
from helpers.gradients import image
from helpers.serving import make_images, make_model

from objrec.config.cli import guard
from objrec.config.load import load_config
from objrec.config.space import why_full
from objrec.ingest.store import WebStore
from objrec.system.files import write_atomically, write_json

MEBIBYTE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "objrec-test"]
    if shutil.which("mount") is None or subprocess.run(["mount", *options, place], capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all space but ``leave`` bytes."""
    status = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"0" * max(0, status.f_bavail * status.f_frsize - leave))
    return filler


def raw(folder: Path, count: int = 60, size: int = 150) -> Path:
    for name, base in (("cat", 0), ("dog", 1000)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(image(base + i, (size, size)))
    return folder


def step(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"objrec.steps.{name}", *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def one_line(done: subprocess.CompletedProcess[str], disk: Path) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines[0].startswith(f"error: no space left on {disk}. ")
    return lines[0]


def test_ingest(disk: Path, tmp_path: Path) -> None:
    source = raw(tmp_path / "mine")
    filler = fill(disk, MEBIBYTE // 4)
    arguments = [
        "source=folder",
        f"source.path={source}",
        f"raw_data_dir={disk / 'raw'}",
        f"cache_dir={disk / 'cache'}",
    ]
    one_line(step("ingest", *arguments), disk)
    assert {p.name for p in disk.iterdir()} <= {"cache", "filler"}, "nothing of ours goes on filling it"
    filler.unlink()
    assert step("ingest", *arguments).returncode == 0


def test_preprocess(disk: Path, tmp_path: Path) -> None:
    source = raw(tmp_path / "mine")
    filler = fill(disk, MEBIBYTE // 4)
    arguments = [f"raw_data_dir={source}", *(f"{s}_dir={disk / s}" for s in ("train", "valid", "test"))]
    arguments += [f"cache_dir={tmp_path / 'cache'}", "preprocess.exact_split=true"]
    said = one_line(step("preprocess", *arguments), disk)
    assert "Nothing of objrec's that could be freed is there" in said
    assert {p.name for p in disk.iterdir()} == {"filler"}
    filler.unlink()
    assert step("preprocess", *arguments).returncode == 0


def test_the_pipeline(disk: Path, tmp_path: Path) -> None:
    """Cache, log of the step and run.json are on the full disk."""
    source = raw(tmp_path / "mine")
    places = [f"cache_dir={disk / 'cache'}", f"runs_dir={disk / 'runs'}", f"registry_dir={disk / 'registry'}"]
    (disk / "runs/pipeline/old").mkdir(parents=True)
    (disk / "runs/pipeline/old/report.html").write_bytes(b"0" * 100_000)
    filler = fill(disk, MEBIBYTE // 4)
    command = [sys.executable, "-m", "objrec.pipeline", "source=folder", f"source.path={source}", *places]
    said = one_line(subprocess.run(command, capture_output=True, text=True, timeout=120), disk)
    assert f"runs, 0.1 MB (rm -r those in {disk / 'runs'} that are no longer needed)" in said
    assert not list((disk / "cache").rglob("*.png")), "nothing half done is kept"
    filler.unlink()


def test_a_training_at_its_checkpoint(disk: Path, tmp_path: Path) -> None:
    splits = {name: raw(tmp_path / name, count=8, size=40) for name in ("train", "valid")}
    filler = fill(disk, MEBIBYTE // 4)
    arguments = [f"{name}_dir={path}" for name, path in splits.items()]
    arguments += [f"model_dir={disk / 'model'}", f"cache_dir={tmp_path / 'cache'}", f"runs_dir={tmp_path / 'runs'}"]
    arguments += ["backbone.name=test_efficientnet", "preprocess.image_size=32", "train.max_epochs=1"]
    done = step("train", *arguments)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "space" in lines[0]
    assert not (disk / "model").exists()
    filler.unlink()
    done = step("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert (disk / "model" / "model.json").is_file()


def test_evaluation_and_deployment(disk: Path, tmp_path: Path) -> None:
    model, test = make_model(tmp_path / "model"), make_images(tmp_path / "test")
    filler = fill(disk, 4096)
    evaluate = [f"model_dir={model}", f"test_dir={test}", f"report_dir={disk / 'report'}"]
    evaluate += [f"accuracy_file={disk / 'accuracy.json'}", f"cache_dir={tmp_path / 'cache'}"]
    one_line(step("evaluate", *evaluate), disk)
    assert {p.name for p in disk.iterdir()} == {"filler"}
    filler.unlink()
    done = step("evaluate", *evaluate)
    assert done.returncode == 0, done.stderr
    filler = fill(disk, 4096)
    deploy = [f"model_dir={model}", f"test_dir={test}", f"accuracy_file={disk / 'accuracy.json'}", "deploy.start=false"]
    deploy += [f"registry_dir={disk / 'registry'}", f"endpoint_file={tmp_path / 'endpoint.json'}"]
    one_line(step("deploy", *deploy), disk)
    assert not list((disk / "registry").glob("models/*")) and not (disk / "registry" / "aliases.json").exists()
    filler.unlink()
    done = step("deploy", *deploy)
    assert done.returncode == 0, done.stderr


def test_a_dry_run(disk: Path) -> None:
    filler = fill(disk, 4096)
    command = [sys.executable, str(ROOT / "azureml" / "submit.py"), "dry_run=true", f"runs_dir={disk / 'runs'}"]
    one_line(subprocess.run(command, capture_output=True, text=True, timeout=120), disk)
    filler.unlink()
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).returncode == 0


def test_the_store_of_the_web_sources(disk: Path) -> None:
    store = WebStore(disk / "store", limits="a")
    filler = fill(disk, MEBIBYTE // 4)
    with pytest.raises(OSError, match="No space left"):
        store.write("0" * 64, b"1" * MEBIBYTE)
    assert not store.path("0" * 64).exists()
    with contextlib.suppress(OSError):
        (disk / "rest").write_bytes(b"0" * MEBIBYTE)
    with pytest.raises(sqlite3.OperationalError) as caught:
        for number in range(5000):
            store.record(f"http://a/{number}.jpg", status="http_404", reason="x" * 200)
    said = why_full(caught.value, disk)
    assert said is not None and said.startswith(f"no space left on {disk}. ")
    filler.unlink()
    (disk / "rest").unlink()
    store.record("http://a/1.jpg", status="http_404")
    store.close()


def test_what_is_written_atomically_stays_as_it_was(disk: Path) -> None:
    record = disk / "run.json"
    write_json(record, {"a": 1})
    fill(disk, 4096)
    before = {p.name for p in disk.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        write_atomically(record, b"0" * MEBIBYTE)
    assert record.read_text() == '{\n  "a": 1\n}\n' and {p.name for p in disk.iterdir()} == before


def fails(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: IoError(Os { code: 28, message: 'No space left on device' })"),
        sqlite3.OperationalError("database or disk is full"),
        ExceptionGroup("several", [OSError(errno.ENOSPC, "No space left on device")]),
    ],
)
def test_every_library_s_word_for_it(error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a").write_bytes(b"0" * 3_000_000)
    load_config([f"cache_dir={tmp_path / 'cache'}", f"registry_dir={tmp_path}/r", f"runs_dir={tmp_path}/runs"])
    if getattr(error, "errno", None) is not None:
        error = OSError(error.errno, error.strerror, str(tmp_path / "b"))  # type: ignore[attr-defined]
    assert guard(lambda: fails(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no space left on" in line or "the disk quota is used up on" in line
    if isinstance(error, OSError):
        assert f"the cache, 3.0 MB (rm -r {tmp_path / 'cache'}; what is needed is made again)" in line


def test_other_errors_are_other_errors() -> None:
    assert why_full(OSError(errno.EACCES, "Permission denied", "/a")) is None
    assert why_full(ValueError("no")) is None
