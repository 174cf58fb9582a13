"""The ingest step on local sources, and the rule that says what is kept."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.folders import image, write_folder, write_zip
from helpers.ingest import ingest, tree
from hypothesis import given
from hypothesis import strategies as st

from objrec.config.errors import UserError
from objrec.ingest.examine import ExaminedImage
from objrec.ingest.selection import CandidateOutcome, CandidateSelection
from objrec.sources.base import Candidate


def test_the_sample_gives_exactly_what_was_asked_and_twice_the_same(tmp_path: Path) -> None:
    rows = ingest(tmp_path / "a", "ingest.num_images=7", "classes.names=[cat,ship,apple]")
    assert Counter((r["class"], r["status"]) for r in rows) == {(c, "kept"): 7 for c in ("cat", "ship", "apple")}
    ingest(tmp_path / "b", "ingest.num_images=7", "classes.names=[cat,ship,apple]")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_folder_with_every_fault(tmp_path: Path) -> None:
    good = [image(i) for i in range(8)]
    files = {f"cat/{i}.jpg": good[i] for i in range(4)} | {f"dog/{i}.jpg": good[i] for i in range(4, 8)}
    faults = {
        "cat/again.jpg": good[0],
        "dog/also.jpg": good[1],
        "dog/empty.jpg": b"",
        "dog/text.jpg": b"<html>",
        "dog/cut.jpg": good[5][: len(good[5]) // 2],
        "dog/small.jpg": image(9, (20, 20)),
    }
    path = write_zip(tmp_path / "a.zip", files | faults)
    rows = ingest(tmp_path / "out", "source=folder", f"source.path={path}")
    statuses = {r["url"].removeprefix("file:"): r["status"] for r in rows}
    assert set(statuses) == set(files | faults)
    assert statuses["dog/empty.jpg"] == statuses["dog/cut.jpg"] == "corrupt"
    assert statuses["dog/text.jpg"] == "unsupported"
    assert statuses["dog/small.jpg"] == "too_small"
    assert statuses["cat/1.jpg"] == statuses["dog/also.jpg"] == "ambiguous"
    assert sorted([statuses["cat/0.jpg"], statuses["cat/again.jpg"]]) == ["duplicate", "kept"]
    assert Counter(r["class"] for r in rows if r["status"] == "kept") == {"cat": 3, "dog": 4}


def test_all_of_a_folder_is_taken_unless_a_number_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{c}/{i}.jpg": image(1000 * j + i) for j, c in enumerate("ab") for i in range(103)}
    path = write_folder(tmp_path / "in", files | {"LICENSE.txt": b"words", "a/.DS_Store": b""})
    options = ["source=folder", f"source.path={path}"]
    rows = ingest(tmp_path / "out", *options)
    assert Counter(r["status"] for r in rows) == {"kept": 206, "unsupported": 1, "stray": 1}
    assert "not taken" not in capsys.readouterr().err
    rows = ingest(tmp_path / "less", *options, "ingest.num_images=100")
    assert Counter(r["status"] for r in rows) == {"kept": 200, "not_taken": 7, "stray": 1}
    assert "7 of 207 files were not taken" in capsys.readouterr().err


def test_a_folder_with_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9/\xe9t\xe9.jpg")
    path = write_folder(tmp_path / "in", {name: image(1), "dog/b.jpg": image(2)})
    rows = ingest(tmp_path / "out", "source=folder", f"source.path={path}")
    assert {r["file"].split("/")[0] for r in rows} == {"café", "dog"}


def test_bad_candidates_are_replaced(tmp_path: Path) -> None:
    files = {f"{c}/{i}.jpg": image(1000 * j + i) if i % 3 else b"bad" for j, c in enumerate("ab") for i in range(60)}
    path = write_folder(tmp_path / "in", files)
    rows = ingest(tmp_path / "out", "source=folder", f"source.path={path}", "ingest.num_images=25")
    assert Counter(r["class"] for r in rows if r["status"] == "kept") == {"a": 25, "b": 25}
    looked_at = [r for r in rows if r["status"] != "not_taken"]
    assert len(looked_at) < len(rows) == 120  # it stopped when it had enough, and says what it did not take


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["classes.names=[cat,dgo]"], "no 'dgo'. Did you mean 'dog'"),
        (["classes.names=[cat,dog]", "ingest.min_size=100"], "no usable image .*ingest.min_size=50"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, overrides: list[str], message: str) -> None:
    write_folder(tmp_path / "in", {"cat/a.jpg": image(1), "dog/b.jpg": image(2)})
    with pytest.raises(UserError, match=message):
        ingest(tmp_path / "out", "source=folder", f"source.path={tmp_path / 'in'}", *overrides)


def test_all_classes_needs_a_source_that_has_some(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs class names"):
        ingest(tmp_path / "out", "classes=from_source")


def outcome(class_name: str, number: int, content: int | None) -> CandidateOutcome:
    candidate = Candidate(class_name=class_name, source="test", url=f"test:{class_name}/{number}")
    if content is None:
        return CandidateOutcome(candidate=candidate, status="corrupt", reason="test")
    sha = hashlib.sha256(str(content).encode()).hexdigest()
    bits = int(hashlib.sha256(str(content // 3).encode()).hexdigest(), 16)  # 3k, 3k + 1 and 3k + 2 resemble each other
    rows, columns = (bits ^ (0b11111 << 5 * (content % 3))) & MASK, bits >> 64 & MASK
    found = ExaminedImage(sha256=sha, size=1, width=64, height=64, extension="jpg", rows=rows, columns=columns)
    return CandidateOutcome(candidate=candidate, image=found, exact=content % 5 == 0)


MASK = 2**64 - 1
contents = st.lists(st.none() | st.integers(0, 24), max_size=20)


@given(
    offers=st.lists(contents, min_size=2, max_size=4),
    wanted=st.integers(1, 6),
    seed=st.integers(0, 1000),
    distance=st.sampled_from([None, 0, 5, 6]),
)
def test_the_selection_does_not_depend_on_the_order_of_the_classes(
    offers: list[list[int | None]], wanted: int, seed: int, distance: int | None
) -> None:
    names = [f"class{i}" for i in range(len(offers))]

    def fill(pick: random.Random) -> list[dict[str, Any]]:
        selection = CandidateSelection(names, wanted, distance=distance)
        queues = {n: [outcome(n, i, c) for i, c in enumerate(o)] for n, o in zip(names, offers, strict=True)}
        while ready := [n for n in names if queues[n] and selection.missing(n)]:
            selection.add(queues[n := pick.choice(ready)].pop(0))
        rows = list(selection.rows())
        for n in names:
            kept = [r["sha256"] for r in rows if r["class"] == n and r["status"] == "kept"]
            assert len(kept) == len(set(kept)) == selection.kept(n) <= wanted
            assert selection.statuses(n) == Counter(r["status"] for r in rows if r["class"] == n)
            assert len(kept) == wanted or not queues[n]
        return rows

    first = fill(random.Random(seed))
    assert first == fill(random.Random(seed + 1))
    kept = Counter(r["sha256"] for r in first if r["status"] == "kept")
    assert set(kept.values()) <= {1}, "no image is kept for two classes"
