"""Keys, cache and runner, on the two steps that need no torch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.pipeline_driver import run

import objrec
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.runner.cache import digest_of, scan
from objrec.steps import NAMES, load_steps
from objrec.steps.base import restrict
from objrec.steps.keys import SourceIndex, key_parts

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "classes.names=[apple,pear]",
    "ingest.num_images=24",
    "preprocess.image_size=32",
    "preprocess.exact_split=true",
]
STEPS = {step.name: step for step in load_steps()}


def statuses(overrides: list[str]) -> dict[str, str]:
    record, _ = run(overrides)
    return {s.name: s.status for s in record.steps}


def reasons(overrides: list[str]) -> dict[str, str]:
    record, _ = run(overrides)
    return {s.name: s.reason for s in record.steps}


def test_a_second_run_reuses_and_says_so(workdir: Path) -> None:
    assert statuses(SMALL) == {"ingest": "ran", "preprocess": "ran"}
    record, run_dir = run(SMALL)
    assert [s.status for s in record.steps] == ["reused", "reused"]
    written = json.loads((run_dir / "run.json").read_text())
    assert set(written) == {"id", "seconds", "accuracy", "endpoint_url", "steps"}
    assert {"name", "status", "reason", "seconds", "key", "outputs"} <= set(written["steps"][0])
    assert Path(written["steps"][1]["outputs"]["train_dir"], "split.json").is_file()


def test_only_what_depends_on_a_change_runs_again_and_says_why(workdir: Path) -> None:
    run(SMALL)
    assert reasons([*SMALL, "train.max_epochs=3", "runs_dir=other"])["preprocess"] == "nothing it depends on changed"
    said = reasons([*SMALL, "preprocess.jpeg_quality=80"])
    assert said["ingest"] == "nothing it depends on changed"
    assert said["preprocess"] == "preprocess.jpeg_quality nothing → 80"
    assert statuses([*SMALL, "seed=1"]) == {"ingest": "ran", "preprocess": "ran"}


def test_force_runs_again(workdir: Path) -> None:
    run(SMALL)
    assert statuses([*SMALL, "force=[preprocess]"]) == {"ingest": "reused", "preprocess": "ran"}
    assert statuses([*SMALL, "force=all"]) == {"ingest": "ran", "preprocess": "ran"}
    with pytest.raises(UserError, match=r"force=preproces: no such step. Did you mean 'preprocess'\?"):
        run([*SMALL, "force=preproces"])


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "extra", "manifest"])
def test_a_damaged_output_is_found_and_rebuilt(workdir: Path, harm: str) -> None:
    record, _ = run(SMALL)
    folder = Path(record.step("preprocess").outputs["train_dir"])
    image = next(folder.glob("*/*.jpg"))
    good = digest_of(scan(folder))
    if harm == "truncate":
        image.write_bytes(image.read_bytes()[:100])
    elif harm == "flip":
        data = bytearray(image.read_bytes())
        data[200] ^= 1
        image.write_bytes(data)
    elif harm == "delete":
        image.unlink()
    elif harm == "extra":
        (image.parent / "stranger.jpg").write_bytes(b"x")
    else:
        (folder.parent / "manifest.json").write_text("{")
    record, _ = run(SMALL)
    assert record.step("preprocess").status == "ran" and "damaged" in record.step("preprocess").reason
    assert digest_of(scan(folder)) == good


def test_the_same_bytes_with_other_times_are_accepted(workdir: Path) -> None:
    record, _ = run(SMALL)
    for image in Path(record.step("preprocess").outputs["train_dir"]).glob("*/*.jpg"):
        os.utime(image, (1, 1))
    assert statuses(SMALL) == {"ingest": "reused", "preprocess": "reused"}


def test_a_changed_folder_of_the_users_is_noticed_by_content(workdir: Path) -> None:
    record, _ = run(SMALL)
    mine = workdir / "mine"
    Path(record.step("ingest").outputs["raw_data_dir"]).rename(mine)
    (mine / "manifest.jsonl").unlink()
    overrides = ["source=folder", f"source.path={mine}", *SMALL[1:]]
    assert statuses(overrides)["ingest"] == "ran"
    for image in mine.glob("*/*"):
        os.utime(image, (5, 5))
    moved = workdir / "moved"
    mine.rename(moved)
    overrides[1] = f"source.path={moved}"
    assert statuses(overrides) == {"ingest": "reused", "preprocess": "reused"}
    next(moved.glob("apple/*")).unlink()
    assert statuses(overrides)["ingest"] == "ran"


def test_two_runs_at_once_share_one_result(workdir: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "helpers/pipeline_driver.py"), *SMALL]
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    runs = [json.loads(p.read_text()) for p in Path("runs/pipeline").glob("2*/run.json")]
    assert sorted(s["status"] for r in runs for s in r["steps"]) == ["ran", "ran", "reused", "reused"]


def test_a_kill_at_any_moment_leaves_nothing_that_a_rerun_would_accept(workdir: Path) -> None:
    undisturbed, _ = run([*SMALL, "cache_dir=undisturbed"])
    expected = {n: digest_of(scan(Path(p))) for n, p in undisturbed.step("preprocess").outputs.items()}
    command = [sys.executable, str(ROOT / "tests" / "helpers/pipeline_driver.py"), *SMALL]
    moments = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 2.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    record, _ = run(SMALL)
    outputs = record.step("preprocess").outputs
    assert {n: digest_of(scan(Path(p))) for n, p in outputs.items()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_declared_once_and_runs_as_a_command(name: str) -> None:
    step = STEPS[name]
    assert step.name == name and step.outputs and step.summary
    done = subprocess.run([sys.executable, "-m", step.module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and step.summary in done.stdout
    for port in step.outputs:
        assert f"{port.name}=PATH" in done.stdout


def test_a_step_cannot_read_what_it_does_not_declare() -> None:
    seen = restrict(load_config(), STEPS["preprocess"])
    assert seen.preprocess.image_size == 48 and seen.images.max_pixels > 0
    with pytest.raises(AssertionError, match=r"train"):
        _ = seen.train.max_epochs
    with pytest.raises(AssertionError, match=r"preprocess.split"):
        _ = restrict(load_config(), STEPS["train"]).preprocess.split


def test_keys_hold_no_paths_secrets_or_presentation(tmp_path: Path) -> None:
    plain = [
        "serve.key_file=a",
        "runs_dir=a",
        "ingest.contact=a@b.c",
        "datamodule.num_workers=3",
        "train.log_every_n_steps=7",
    ]
    index = SourceIndex(tmp_path / "sources.json")
    for step in STEPS.values():
        assert key_parts(step, load_config(), {}, index) == key_parts(step, load_config(plain), {}, index)


def test_a_key_covers_the_source_that_a_step_imports(tmp_path: Path) -> None:
    index = SourceIndex(tmp_path / "sources.json")
    sources = key_parts(STEPS["preprocess"], load_config(), {}, index).sources
    assert {"objrec/steps/preprocess.py", "objrec/images/decode.py", "objrec/preprocess/split.py"} <= set(sources)
    assert not any(path.startswith(("objrec/config", "objrec/runner", "objrec/serving")) for path in sources)
    train = key_parts(STEPS["train"], load_config(["scheduler=cosine"]), {}, index).sources
    assert "objrec/training/schedulers.py" in train and "objrec/training/classifier.py" in train
    assert not any("/display/" in path or path == "objrec/steps/__init__.py" for path in train)


def test_a_key_covers_the_templates_that_a_module_names(tmp_path: Path) -> None:
    index = SourceIndex(tmp_path / "sources.json")
    templates = {
        name: {f for f in key_parts(step, load_config(), {}, index).sources if not f.endswith(".py")}
        for name, step in STEPS.items()
    }
    shared = {f"objrec/reports/{name}" for name in ("base.html.j2", "macros.html.j2", "style.css")}
    assert templates["ingest"] == shared | {"objrec/ingest/ingest_report.html.j2"}
    assert templates["preprocess"] == shared | {"objrec/preprocess/leakage_report.html.j2"}
    assert templates["evaluate"] == shared | {"objrec/evaluation/report.html.j2"}
    assert templates["train"] == set()  # a report re-runs no training


def test_every_template_is_named_by_a_module_beside_it(tmp_path: Path) -> None:
    index = SourceIndex(tmp_path / "sources.json")
    package = Path(objrec.__file__).parent
    data = [p for p in package.rglob("*.*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert len(data) >= 7
    for path in data:
        modules = [".".join(m.relative_to(package.parent).with_suffix("").parts) for m in path.parent.glob("*.py")]
        assert str(path.relative_to(package.parent)) in index.closure(*modules), f"{path}: no key covers it"


def test_a_report_is_no_part_of_what_later_steps_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "page.html").write_text("data of whatever kind")
    digests = [digest_of(scan(tmp_path))]
    for name, text in (("leakage.html", "a"), ("leakage.html", "b"), ("cat/page.html", "c")):
        (tmp_path / name).write_text(text)
        digests.append(digest_of(scan(tmp_path)))
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_an_index_of_an_older_version_is_read_anew(tmp_path: Path) -> None:
    index = SourceIndex(tmp_path / "sources.json")
    fresh = index.closure("objrec.ingest.report")
    index.remember()
    old = {name: row[:3] for name, row in json.loads((tmp_path / "sources.json").read_text()).items()}
    (tmp_path / "sources.json").write_text(json.dumps(old))
    assert SourceIndex(tmp_path / "sources.json").closure("objrec.ingest.report") == fresh


def test_the_steps_own_command_equals_the_runners(workdir: Path) -> None:
    record, _ = run(SMALL)
    raw = record.step("ingest").outputs["raw_data_dir"]
    command = [sys.executable, "-m", "objrec.steps.preprocess", f"raw_data_dir={raw}"]
    outputs = [f"{split}_dir=alone/{split}" for split in ("train", "valid", "test")]
    done = subprocess.run([*command, *outputs, *SMALL], check=False)
    assert done.returncode == 0
    for split in ("train", "valid", "test"):
        mine = record.step("preprocess").outputs[f"{split}_dir"]
        assert digest_of(scan(Path("alone") / split)) == digest_of(scan(Path(mine)))


def test_a_refused_step_leaves_nothing_behind(workdir: Path) -> None:
    (workdir / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "objrec.pipeline", "source=folder", "source.path=empty"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        done.stderr.count("error: ") == 1 and done.stderr.count("source.path=empty: contains no <class>/<image>") == 1
    )
    assert not (workdir / "runs").exists()
    assert not list((workdir / ".objrec" / "cache").glob("*/*.partial"))


def test_missing_ports_are_told_together(workdir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "objrec.steps.train", "train_dir=nowhere"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith("error: ")] == []
    assert "train_dir=nowhere: there is no such" in done.stderr and "valid_dir=PATH" in done.stderr
    assert "model_dir=PATH" in done.stderr


def test_files_that_change_places_or_bytes_under_their_old_times_are_hashed_again(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(name.encode())
        os.utime(tmp_path / name / "1.jpg", ns=(10**18, 10**18))
    time.sleep(0.1)  # until their stamps may be trusted
    before = scan(tmp_path)
    assert scan(tmp_path, before) == before
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (tmp_path / old).rename(tmp_path / new)
    swapped = scan(tmp_path, before)
    assert digest_of(swapped) == digest_of(scan(tmp_path)) != digest_of(before)
    (tmp_path / "cat" / "1.jpg").write_bytes(b"cow")
    os.utime(tmp_path / "cat" / "1.jpg", ns=(10**18, 10**18))
    assert digest_of(scan(tmp_path, swapped)) == digest_of(scan(tmp_path)) != digest_of(swapped)
