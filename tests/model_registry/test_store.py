"""The registry folder: content-addressed, safe under many writers and a kill at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.serving import FAST, make_model, put_in_registry

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.deployment.rollout import roll_out
from objrec.model_registry.records import Record
from objrec.model_registry.store import INCOMING, FolderRegistry
from objrec.models.card import ModelCard
from objrec.predict import production_dir
from objrec.registry import main
from objrec.serving.metrics import Metrics
from objrec.serving.model_manager import ModelManager
from objrec.serving.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(tmp_path / "registry")


def test_an_empty_registry_reads_as_empty_and_writes_nothing(registry: FolderRegistry) -> None:
    assert registry.production() is None and registry.models() == [] and registry.events() == []
    assert registry.verify() == {} and not registry.root.exists()


def test_add_promote_and_go_back(registry: FolderRegistry, tmp_path: Path) -> None:
    one, two = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i), 0.1 * i) for i in (1, 2))
    assert registry.promote(one) is None
    assert registry.promote(two) == one
    assert registry.aliases() == {"production": two, "previous": one}
    assert registry.promote(two) == two and registry.aliases()["previous"] == one  # again: previous stays
    assert registry.promote(one) == two
    assert registry.aliases() == {"production": one, "previous": two}
    assert registry.resolve("production") == one.sha256 == registry.resolve(one.sha256[:8])
    assert sorted(registry.records()) == registry.models()


def test_a_failed_roll_out_takes_back_its_own_promotion_only(registry: FolderRegistry, tmp_path: Path) -> None:
    one, two, three = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(3))
    registry.promote(one)
    before = registry.aliases()
    registry.promote(two)
    registry.restore(before, failed=two)
    assert registry.aliases() == {"production": one}
    registry.promote(two)
    registry.promote(three)  # somebody else, meanwhile
    registry.restore(before, failed=two)
    assert registry.aliases() == {"production": three, "previous": two}


def test_nothing_moves_where_the_log_cannot_be_written(registry: FolderRegistry, tmp_path: Path) -> None:
    one, two = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(2))
    registry.promote(one)
    log = (registry.root / "registry.jsonl").rename(tmp_path / "kept")
    (registry.root / "registry.jsonl").mkdir()
    with pytest.raises(OSError, match="directory"):
        roll_out(registry, two)
    assert registry.aliases() == {"production": one}
    (registry.root / "registry.jsonl").rmdir()
    log.rename(registry.root / "registry.jsonl")
    roll_out(registry, two)
    assert registry.aliases() == {"production": two, "previous": one}


def test_a_damaged_model_is_not_promoted(registry: FolderRegistry, tmp_path: Path) -> None:
    one, two = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(2))
    registry.promote(one)
    registry.promote(two)
    with (registry.model_dir(one.sha256) / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert main(["rollback", f"registry_dir={registry.root}"]) == 2
    assert registry.production() == two


def test_only_what_serving_needs_is_copied(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "training").mkdir()
    (model / "training" / "checkpoint.ckpt").write_bytes(b"x" * 100)
    (model / "config.yaml").write_text("seed: 0\n")
    record = put_in_registry(registry.root, model)
    names = sorted(p.name for p in registry.model_dir(record.sha256).iterdir())
    assert names == ["config.yaml", "model.json", "model.onnx", "model.safetensors"]


def test_a_damaged_folder_is_refused_and_leaves_nothing(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    with (model / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="damaged"):
        put_in_registry(registry.root, model)
    assert list((registry.root / "models").iterdir()) == []


def test_a_card_that_points_outside_its_folder_is_refused(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    card = json.loads((model / "model.json").read_text())
    card["files"]["../secret"] = "0" * 64
    (model / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="outside the model folder"):
        put_in_registry(registry.root, model)


def test_a_damaged_registered_model_is_found_and_replaced(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    record = put_in_registry(registry.root, model)
    (registry.model_dir(record.sha256) / "model.onnx").write_bytes(b"rotten")
    assert "damaged" in registry.verify()[record.sha256]
    put_in_registry(registry.root, model)
    assert registry.verify() == {record.sha256: ""}


def test_the_same_weights_under_another_meaning_are_refused(registry: FolderRegistry, tmp_path: Path) -> None:
    put_in_registry(registry.root, make_model(tmp_path / "a"))
    other = make_model(tmp_path / "b", classes=["blue", "green", "red"])
    with pytest.raises(UserError, match="class_names"):
        put_in_registry(registry.root, other)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("model.json", '"green"', '"brown"'),
        ("model.json", "0.25", "0.35"),
        ("model.json", '"bilinear"', '"bicubic"'),
        ("config.yaml", "seed: 0", "seed: 1"),
    ],
)
def test_every_file_of_a_registered_model_is_covered(
    registry: FolderRegistry, tmp_path: Path, name: str, old: str, new: str
) -> None:
    model = make_model(tmp_path / "m")
    (model / "config.yaml").write_text("seed: 0\n")
    record = put_in_registry(registry.root, model)
    registry.promote(record)
    file = registry.model_dir(record.sha256) / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert f"{name} is damaged" in registry.verify()[record.sha256]
    assert main(["verify", f"registry_dir={registry.root}"]) == 1
    assert main(["promote", "production", f"registry_dir={registry.root}"]) == 2
    live = ModelManager(ServiceSettings.of(load_config([*FAST]), registry_dir=str(registry.root)), Metrics(lambda: 0))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        live.follow()
    with pytest.raises(UserError, match=f"{name} is damaged"):
        production_dir(registry.root)
    put_in_registry(registry.root, model)  # deployed again
    assert registry.verify() == {record.sha256: ""} and live.follow().version == record.sha256


def test_a_missing_file_that_the_card_does_not_list_is_found(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    (model / "config.yaml").write_text("seed: 0\n")
    record = put_in_registry(registry.root, model)
    (registry.model_dir(record.sha256) / "config.yaml").unlink()
    assert "config.yaml is missing" in registry.verify()[record.sha256]


def test_what_is_known_of_a_model_is_the_logs_word(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_in_registry(registry.root, make_model(tmp_path / "m"), 0.9)
    registry.promote(record)
    aliases = registry.root / "aliases.json"
    aliases.write_text(aliases.read_text().replace("0.9", "0.1"))
    assert registry.production() == record
    where = f"registry_dir={registry.root}"
    assert main(["verify", where]) == 1 and "promote the model again" in capsys.readouterr().out
    assert main(["promote", "production", where]) == 0 and main(["verify", where]) == 0
    log = registry.root / "registry.jsonl"
    log.write_text(log.read_text().replace('"accuracy": 0.9', '"accuracy": 0.2', 1))
    assert registry.edited_lines() == [1] and registry.production() == record  # by the other lines
    capsys.readouterr()
    assert main(["verify", where]) == 1 and "line 1 was modified" in capsys.readouterr().out


def test_a_registry_of_an_older_version_still_works(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log has neither hashes nor checks, and its records fewer fields."""
    one, two = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(2))
    registry.promote(one)
    registry.promote(two)
    as_then = ("sha256", "training_data_fingerprint", "accuracy", "test_data_fingerprint", "num_images")
    lines = []
    for event in registry.events():
        event.pop("files", None)
        lines.append(json.dumps({**event, "record": {k: event["record"][k] for k in as_then}}) + "\n")
    (registry.root / "registry.jsonl").write_text("".join(lines))
    aliases = json.loads((registry.root / "aliases.json").read_text())
    (registry.root / "aliases.json").write_text(
        json.dumps({name: {k: record[k] for k in as_then} for name, record in aliases.items()})
    )
    where = f"registry_dir={registry.root}"
    assert registry.aliases() == {"production": two, "previous": one}
    assert main(["verify", where]) == 0
    assert capsys.readouterr().out.count("OK; registered by an older version") == 2
    assert main(["rollback", where]) == 0 and registry.production() == one
    assert production_dir(registry.root) == registry.model_dir(one.sha256)
    put_in_registry(registry.root, tmp_path / "m0")  # deployed again: covered from here on
    assert set(registry.hashes()) == {one.sha256}


def test_the_list_shows_what_is_there(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(3))
    registry.promote(one)
    registry.promote(two)
    shutil.rmtree(registry.model_dir(one.sha256))
    log = registry.root / "registry.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if three.sha256 not in line))
    assert main(["list", f"registry_dir={registry.root}"]) == 0
    listed = {line[:12]: line for line in capsys.readouterr().out.splitlines()}
    assert set(listed) == {r.sha256[:12] for r in (one, two, three)}
    assert listed[one.sha256[:12]].endswith("previous (missing)")
    assert "not in the log" in listed[three.sha256[:12]] and listed[two.sha256[:12]].endswith("production")


def test_a_torn_line_of_the_log_is_left_out_and_the_next_one_whole(registry: FolderRegistry) -> None:
    registry.log("one")
    with (registry.root / "registry.jsonl").open("a") as file:
        file.write('{"event": "tor')
    registry.log("two")
    assert [e["event"] for e in registry.events()] == ["one", "two"]


def test_damaged_aliases_are_an_error_with_the_cure(registry: FolderRegistry) -> None:
    registry.log("one")
    for text in ("", "[]", '{"production": {}}', "null"):
        (registry.root / "aliases.json").write_text(text)
        with pytest.raises(UserError, match="promote"):
            registry.production()


def test_gc_keeps_what_is_in_use_and_the_newest(registry: FolderRegistry, tmp_path: Path) -> None:
    records = [put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(5)]
    registry.promote(records[0])
    registry.promote(records[1])
    (registry.root / "models" / f"{INCOMING}left").mkdir()
    removed = registry.gc(keep=1)
    assert sorted(removed) == sorted(r.sha256 for r in (records[2], records[3]))
    assert registry.models() == sorted(r.sha256 for r in (records[0], records[1], records[4]))
    assert list((registry.root / "models").glob(f"{INCOMING}*")) == []
    assert set(registry.verify().values()) == {""}


def test_gc_without_a_log_keeps_the_newest_by_their_folders(registry: FolderRegistry, tmp_path: Path) -> None:
    records = [put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i)) for i in range(4)]
    (registry.root / "registry.jsonl").unlink()
    for age, record in enumerate(records):
        os.utime(registry.model_dir(record.sha256), (10**9 - age, 10**9 - age))
    assert registry.gc(keep=4) == []
    assert sorted(registry.gc(keep=2)) == sorted(r.sha256 for r in records[2:])
    (registry.root / "registry.jsonl").unlink()
    put_in_registry(registry.root, tmp_path / "m3")
    assert registry.gc(keep=2) == [records[3].sha256]  # whatever the log does not know is newer
    registry.gc(keep=0)
    assert registry.models() == []


RECORDS = ("null", "[1]", "5", "{}", '{"sha256":5}', '"x"')
ODD = ["{}", "[]", "5", '{"event":"registered"}', "[" * 100_000]
ODD += [f'{{"event":"registered","record":{record}}}' for record in RECORDS]


def test_odd_lines_of_the_log_are_passed_over(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_in_registry(registry.root, make_model(tmp_path / "m"))
    registry.promote(record)
    with (registry.root / "registry.jsonl").open("a") as file:
        file.write("\n".join(ODD) + "\n")
    where = f"registry_dir={registry.root}"
    assert [main([*words, where]) for words in (["list"], ["gc"], ["verify"])] == [0, 0, 0]
    capsys.readouterr()
    assert main(["show", "production", where]) == 0
    assert [h["event"] for h in json.loads(capsys.readouterr().out)["history"]] == ["registered", "promoted"]


def test_a_file_among_the_models_is_none(registry: FolderRegistry, tmp_path: Path) -> None:
    record = put_in_registry(registry.root, make_model(tmp_path / "m"))
    (registry.root / "models" / ("f" * 64)).write_text("stray")
    assert registry.verify() == {record.sha256: ""} and registry.gc(keep=9) == []


def test_a_model_whose_card_is_broken_is_shown_as_an_error(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = put_in_registry(registry.root, make_model(tmp_path / "m"))
    registry.promote(record)
    card = registry.model_dir(record.sha256) / "model.json"
    card.write_text("{")
    assert main(["show", "production", f"registry_dir={registry.root}"]) == 2
    assert "model.json is damaged" in capsys.readouterr().err
    card.unlink()
    assert main(["show", "production", f"registry_dir={registry.root}"]) == 2
    assert "no model.json" in capsys.readouterr().err


def test_the_cure_for_a_mislabelled_model_works(
    registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_in_registry(registry.root, make_model(tmp_path / "a"))
    other = make_model(tmp_path / "b", classes=["blue", "green", "red"])
    with pytest.raises(UserError, match="class_names") as caught:
        put_in_registry(registry.root, other)
    words = str(caught.value).rpartition("python -m objrec.registry ")[2].split()
    assert main([*words, f"registry_dir={registry.root}"]) == 0
    put_in_registry(registry.root, other)


WRITER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from helpers.serving import put_in_registry
from objrec.model_registry.store import FolderRegistry
registry = FolderRegistry(Path(sys.argv[2]))
while True:
    for name in sys.argv[3:]:
        registry.promote(put_in_registry(registry.root, Path(name)))
"""


def writer(root: Path, *models: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(ROOT), str(root), *map(str, models)])


def check(registry: FolderRegistry) -> None:
    """Whatever was killed, all that a reader can see is whole."""
    aliases = registry.aliases()
    for record in aliases.values():
        assert ModelCard.load(registry.model_dir(record.sha256)).sha256 == record.sha256
    assert set(registry.verify().values()) <= {""}


def test_many_writers_killed_at_any_moment_leave_a_sound_registry(registry: FolderRegistry, tmp_path: Path) -> None:
    rng = random.Random(0)
    models = [make_model(tmp_path / f"m{i}", seed=i) for i in range(3)]
    for _ in range(3):
        writers = [writer(registry.root, *rng.sample(models, 3)) for _ in range(2)]
        before = len(registry.events())
        deadline = time.monotonic() + 300
        while len(registry.events()) < before + 6:
            assert time.monotonic() < deadline and all(process.poll() is None for process in writers)
            check(registry)
        time.sleep(rng.random() * 0.05)
        for process in writers:
            process.kill()
            process.wait()
        check(registry)
    events = [e["event"] for e in registry.events()]
    assert events.count("promoted") > 6 and set(events) == {"registered", "promoted"}
    registry.gc(keep=9)
    assert not list((registry.root / "models").glob(f"{INCOMING}*")) and len(registry.models()) == 3


def test_a_stopped_writer_holds_the_lock_until_it_dies(registry: FolderRegistry, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    process = writer(registry.root, model)
    while len(registry.events()) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    registry.log("after")  # no lock is left behind
    with registry.lock():
        assert registry.events()[-1]["event"] == "after"


# The command


def test_the_command(registry: FolderRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"registry_dir={registry.root}"

    def run(*arguments: str, status: int = 0) -> str:
        assert main([*arguments, where]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "no models" in run("list")
    assert "no previous model" in run("rollback", status=2)
    one, two = (put_in_registry(registry.root, make_model(tmp_path / f"m{i}", seed=i), 0.9) for i in (1, 2))
    registry.promote(one)
    assert f"{two.sha256[:12]} is in production; before: {one.sha256[:12]}" in run("promote", two.sha256[:10])
    listed = run("list").splitlines()
    assert listed[0].endswith("previous") and listed[1].endswith("production") and "0.9000" in listed[0]
    assert f"{one.sha256[:12]} is in production" in run("rollback")
    shown = json.loads(run("show", "production"))
    assert shown["version"] == one.sha256 and [h["event"] for h in shown["history"]] == [
        "registered",
        "promoted",
        "rolled_back",
    ]
    assert run("verify").count("OK") == 2
    (registry.model_dir(two.sha256) / "model.onnx").write_bytes(b"")
    assert "damaged" in run("verify", status=1)
    assert run("gc", "deploy.keep=0") == "nothing to remove\n"
    assert "Did you mean 'rollback'" in run("rolback", status=2)
    assert "takes one version" in run("show", status=2)
    assert "no model ffff" in run("promote", "ffff", status=2)
    assert "rollback" in run("--help") and registry.production() == one


def test_a_failed_promotion_by_hand_changes_nothing(registry: FolderRegistry, tmp_path: Path) -> None:
    one = put_in_registry(registry.root, make_model(tmp_path / "m1", seed=1))
    registry.promote(one)
    missing = Record(sha256="f" * 64, training_data_fingerprint="x")
    with pytest.raises(UserError, match="not registered"):
        registry.promote(missing)
    assert registry.aliases() == {"production": one}
