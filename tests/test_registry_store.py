"""The registry folder: content-addressed, safe under many writers and a kill at any moment."""

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
from serving_kit import make_model, put_in_registry

from objrec.config.errors import UserError
from objrec.models.card import ModelCard
from objrec.registry.__main__ import main
from objrec.registry.records import Record
from objrec.registry.store import INCOMING, FolderRegistry
from objrec.serving.rollout import roll_out

ROOT = Path(__file__).resolve().parents[1]


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
from serving_kit import put_in_registry
from objrec.registry.store import FolderRegistry
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
    assert run("verify").count("sound") == 2
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
