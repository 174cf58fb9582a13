"""Splits are a function of content: properties, and the step on odd files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from helpers.gradients import image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.images.image_folder import fingerprint, list_classes
from objrec.images.near_duplicates import is_featureless
from objrec.images.raw import read_raw_images
from objrec.preprocess import split as split_module
from objrec.preprocess.split import SPLITS, assign_splits
from objrec.steps.base import restrict
from objrec.steps.preprocess import STEP

SHARES = [0.7, 0.2, 0.1]


@dataclass(frozen=True)
class Fake:
    class_name: str
    sha256: str
    code: int
    coarse: int


def distinct(count: int, class_name: str = "a") -> list[Fake]:
    """Images that do not resemble each other."""
    random = Random(f"{class_name}{count}")
    return [
        Fake(class_name, f"{class_name}{i:063}", random.getrandbits(128), random.getrandbits(24)) for i in range(count)
    ]


def place(
    images: list[Fake], *, seed: int = 0, exact: bool = False, distance: int | None = 14
) -> dict[str, str | None]:
    assigned = assign_splits(images, shares=SHARES, seed=seed, distance=distance, exact=exact)
    return {p.sha256: s for p, s in zip(images, assigned.splits, strict=True)}


@st.composite
def data_sets(draw: st.DrawFn) -> list[Fake]:
    """Two classes of plenty of images, and families of look-alikes whose members differ in a few bits.

    Members of a family may have another coarse hash or class, and families may form chains.
    """
    random = Random(draw(st.integers(0, 2**32)))
    found = distinct(120, "a") + distinct(120, "b")
    for family in range(draw(st.integers(1, 12))):
        code, coarse = random.getrandbits(128), random.getrandbits(24)
        for member in range(draw(st.integers(2, 6))):
            for bit in random.sample(range(128), draw(st.integers(0, 9))):
                code ^= 1 << bit  # from one member to the next: the last may be far from the first
            if draw(st.booleans()):
                coarse = random.getrandbits(24)
            found.append(Fake(random.choice("ab"), f"f{family}-{member}", code, coarse))
    return found


def near(a: Fake, b: Fake) -> bool:
    """By definition, without the index."""
    return not any(is_featureless(p.code) for p in (a, b)) and (a.code ^ b.code).bit_count() <= 14


@given(data_sets(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_no_near_duplicates_on_two_sides(images: list[Fake], seed: int) -> None:
    placed = place(images, seed=seed)
    family = [p for p in images if p.sha256[0] == "f" and placed[p.sha256] is not None]
    for i, a in enumerate(family):
        for b in family[:i]:
            if near(a, b):
                assert placed[a.sha256] == placed[b.sha256]


@given(data_sets(), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_new_images_move_no_old_ones(images: list[Fake], seed: int, random: Random) -> None:
    """An old image stays where it was, or is left out for a new look-alike on a more protected side."""
    every = place(images, seed=seed)
    old = distinct(120, "a") + distinct(120, "b")
    family = [p for p in images if p.sha256[0] == "f"]
    old += random.sample(family, k=random.randint(0, len(family)))
    before = place(old, seed=seed)
    new = [p for p in images if p.sha256 not in before]
    for known in old:
        was, now = before[known.sha256], every[known.sha256]
        if now is None and was is not None:
            assert was != "test" and any(near(known, other) for other in new)
        else:
            assert now == was


@given(data_sets(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(images: list[Fake], exact: bool, random: Random) -> None:
    shuffled = random.sample(images, len(images))
    assert place(images, exact=exact) == place(shuffled, exact=exact)


@given(data_sets())
@settings(max_examples=30, deadline=None)
def test_whoever_is_left_out_has_a_rival_that_stays_more_protected(images: list[Fake]) -> None:
    assigned = assign_splits(images, shares=SHARES, seed=0, distance=14)
    assert {i for i, s in enumerate(assigned.splits) if s is None} == set(assigned.rivals)
    for index, rival in assigned.rivals.items():
        assert near(images[index], images[rival])
        assert SPLITS.index(assigned.sides[rival]) > SPLITS.index(assigned.sides[index])


@given(data_sets())
@settings(max_examples=30, deadline=None)
def test_exact_counts_keep_every_image_and_every_group(images: list[Fake]) -> None:
    assigned = assign_splits(images, shares=SHARES, seed=0, distance=6, exact=True)
    for group in assigned.groups:
        assert len({assigned.splits[i] for i in group}) == 1
    for name in "ab":
        counts = Counter(s for p, s in zip(images, assigned.splits, strict=True) if p.class_name == name)
        total = sum(counts.values())
        assert [counts["train"], counts["valid"]] == [round(total * 0.7), round(total * 0.2)]


@given(data_sets())
@settings(max_examples=20, deadline=None)
def test_groups_are_what_chains_of_look_alikes_connect(images: list[Fake]) -> None:
    family = [p for p in images if p.sha256[0] == "f"]
    group = {p.sha256: {p.sha256} for p in family}
    for i, a in enumerate(family):
        for b in family[:i]:
            if near(a, b) and group[a.sha256] is not group[b.sha256]:
                group[a.sha256] |= group[b.sha256]
                for member in group[b.sha256]:
                    group[member] = group[a.sha256]
    expected = {frozenset(g) for g in group.values() if len(g) > 1}
    assigned = assign_splits(images, shares=SHARES, seed=0, distance=14)
    assert {frozenset(images[i].sha256 for i in g) for g in assigned.groups} == expected


@pytest.mark.parametrize("count", [3, 4, 10, 37, 100, 1000])
def test_exact_counts(count: int) -> None:
    counts = Counter(place(distinct(count), exact=True).values())
    if count >= 10:
        assert counts["train"] == round(count * 0.7) and counts["valid"] == round(count * 0.2)
    assert sum(counts.values()) == count and min(counts[s] for s in SPLITS) >= 1


def test_shares_are_met_within_chance_in_each_class() -> None:
    images = distinct(10_000, "a") + distinct(3_000, "b")
    placed = place(images)
    for name in "ab":
        counts = Counter(placed[p.sha256] for p in images if p.class_name == name)
        assert [round(counts[s] / counts.total(), 2) for s in SPLITS] == pytest.approx(SHARES, abs=0.02)


def test_the_seed_decides() -> None:
    assert place(distinct(300)) == place(distinct(300)) != place(distinct(300), seed=1)


def test_images_without_features_are_on_their_own() -> None:
    flat = [Fake("a", f"{i:064}", 0, 0) for i in range(300)]  # clear skies: equal hashes say nothing of them
    counts = Counter(place(flat).values())
    assert counts[None] == 0 and counts["test"] > 10


def test_near_duplicates_can_be_let_pass() -> None:
    alike = [Fake("a", f"{i:064}", int("5" * 32, 16), 5) for i in range(300)]
    with pytest.raises(UserError, match="too small to split"):
        place(alike)
    counts = Counter(place(alike, distance=None).values())
    assert counts[None] == 0 and counts["test"] > 10


@pytest.mark.parametrize("exact", [False, True])
def test_a_class_too_small_is_told_with_the_cure(exact: bool) -> None:
    with pytest.raises(UserError, match=r"(?s)class 'b' has 2 distinct images.*add images"):
        place(distinct(300, "a") + distinct(2, "b"), exact=exact)


def test_small_classes_are_split_by_count_and_named() -> None:
    images = [p for name in "abcdef" for p in distinct(21, name)] + distinct(300, "g")
    assigned = assign_splits(images, shares=SHARES, seed=0, distance=14)
    assert assigned.by_count == list("abcdef")
    for name in "abcdef":
        counts = Counter(s for p, s in zip(images, assigned.splits, strict=True) if p.class_name == name)
        assert counts == {"train": 15, "valid": 4, "test": 2}


def test_a_new_image_of_a_small_class_moves_only_those_at_the_cuts() -> None:
    old = distinct(40, "a")
    before, after = place(old + distinct(300, "b")), place([*old, Fake("a", "n" * 64, 5 << 90, 7), *distinct(300, "b")])
    assert sum(before[p.sha256] != after[p.sha256] for p in old) <= 2


def test_a_class_of_which_chance_leaves_a_split_empty_is_split_by_count() -> None:
    lowest = sorted(distinct(3000), key=lambda p: split_module._place(p, 0, grouped=True))[:500]
    assigned = assign_splits(lowest, shares=SHARES, seed=0, distance=14)
    assert assigned.by_count == ["a"] and Counter(assigned.splits)["test"] == 50


def test_a_small_class_keeps_near_duplicates_of_a_large_one_on_one_side() -> None:
    small, large = distinct(20, "s"), distinct(300, "l")
    twins = [Fake("s", f"t{i}", p.code ^ 1, p.coarse) for i, p in enumerate(large[:10])]
    placed = place(small + twins + large)
    for i in range(10):
        assert len({placed[f"t{i}"], placed[large[i].sha256]} - {None}) == 1


def preprocess(raw: Path, out: Path, *overrides: str) -> dict[str, dict[str, object]]:
    outputs = {f"{s}_dir": out / s for s in SPLITS}
    for folder in outputs.values():
        folder.mkdir(parents=True)
    STEP.run(restrict(load_config(["preprocess.exact_split=true", *overrides]), STEP), {"raw_data_dir": raw}, outputs)
    return {s: json.loads((out / s / "split.json").read_text()) for s in SPLITS}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name, base in (("cat", 0), ("dog", 100)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "raw" / name / f"{i}.png").write_bytes(image(base + i))
    return tmp_path / "raw"


def test_bad_files_are_left_out_and_named(raw: Path, tmp_path: Path) -> None:
    (raw / "cat" / "text.jpg").write_bytes(b"no image")
    (raw / "cat" / "half.png").write_bytes(image(50)[:300])
    (raw / "dog" / "again.png").write_bytes(image(100))
    for name in ("cat", "dog"):
        (raw / name / "both.png").write_bytes(image(60))
    summary = preprocess(raw, tmp_path / "out")["train"]
    left_out = {f"{p['class']}/{p['file']}": p["reason"] for p in summary["left_out"]}  # type: ignore[attr-defined, index]
    assert set(left_out) == {"cat/text.jpg", "cat/half.png", "cat/both.png", "dog/both.png", "dog/again.png"} or set(
        left_out
    ) == {"cat/text.jpg", "cat/half.png", "cat/both.png", "dog/both.png", "dog/0.png"}
    assert left_out["cat/both.png"] == "ambiguous: found under cat, dog"


def test_images_are_upright_squares_with_their_aspect_kept(raw: Path, tmp_path: Path) -> None:
    circle = Image.new("RGB", (300, 100), "white")
    circle.paste((255, 0, 0), (100, 0, 200, 100))  # a red square in the middle third
    circle.save(raw / "cat" / "wide.jpg", quality=95)
    preprocess(raw, tmp_path / "out", "preprocess.image_size=64")
    red = [
        p
        for p in (tmp_path / "out").glob("*/cat/*.jpg")
        if Image.open(p).getpixel((32, 32))[0] > 200 and Image.open(p).getpixel((32, 32))[1] < 60  # type: ignore[index]
    ]
    assert len(red) == 1
    square = Image.open(red[0])
    assert square.size == (64, 64)
    assert all(square.getpixel((x, y))[1] < 80 for x in (2, 61) for y in (2, 61))  # type: ignore[index]


def test_the_fingerprint_is_of_content_alone(raw: Path, tmp_path: Path) -> None:
    summary = preprocess(raw, tmp_path / "out")
    assert summary["test"]["fingerprint"] == fingerprint(tmp_path / "out" / "test")
    again = tmp_path / "renamed"
    for i, path in enumerate(sorted((tmp_path / "out" / "test").glob("*/*.jpg"), reverse=True)):
        (again / path.parent.name).mkdir(parents=True, exist_ok=True)
        (again / path.parent.name / f"{i}.jpg").write_bytes(path.read_bytes())
    assert fingerprint(again) == summary["test"]["fingerprint"]


def test_a_class_without_a_usable_image_is_refused_and_nothing_is_left(raw: Path, tmp_path: Path) -> None:
    (raw / "eel").mkdir()
    (raw / "eel" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no usable image of eel \(1 unsupported\).*drop_empty_classes=true"):
        preprocess(raw, tmp_path / "out")
    assert not list((tmp_path / "out" / "train").iterdir())
    summary = preprocess(raw, tmp_path / "again", "preprocess.drop_empty_classes=true")["train"]
    assert summary["classes"] == ["cat", "dog"]
    assert [(r["class"], r["reason"].split(":")[0]) for r in summary["left_out"]] == [("eel", "unsupported")]  # type: ignore[attr-defined]


def test_every_file_is_in_a_split_or_has_a_row(raw: Path, tmp_path: Path) -> None:
    (raw / "cat" / "sub").mkdir()
    (raw / "cat" / "sub" / "x.jfif").write_bytes(image(70))
    (raw / "cat" / "notes.txt").write_text("words")
    (raw / "cat" / ".DS_Store").write_text("words")
    (raw / "empty").mkdir()
    (raw / "loose.png").write_bytes(image(71))
    with open(os.fsencode(raw) + b"/dog/\xe9.txt", "wb") as file:  # noqa: PTH123
        file.write(b"words")
    found = preprocess(raw, tmp_path / "out")
    rows = {f"{r['class']}/{r['file']}": r["reason"].split(":")[0] for r in found["train"]["left_out"]}  # type: ignore[attr-defined]
    assert rows.items() >= {
        ("cat/notes.txt", "not_an_image"),
        ("cat/.DS_Store", "hidden"),
        ("empty/", "empty"),
        ("/loose.png", "stray"),
        ("dog/é.txt", "not_an_image"),
    }
    split = sum(sum(f["counts"].values()) for f in found.values())  # type: ignore[attr-defined]
    assert split + len(rows) == 40 + 1 + 5


def test_the_raw_images_are_on_record(raw: Path, tmp_path: Path) -> None:
    found = preprocess(raw, tmp_path / "out")
    other = preprocess(raw, tmp_path / "other", "seed=3", "preprocess.image_size=32")
    assert {f["raw_fingerprint"] for f in (*found.values(), *other.values())} == {fingerprint(raw)}
    hashes = [h for f in found.values() for h in f["images"].values()]  # type: ignore[attr-defined]
    assert sorted(hashes) == sorted(hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in raw.glob("*/*"))
    listing = list_classes(tmp_path / "out" / "train")
    said = read_raw_images(listing.root, listing.fingerprint)
    assert said is not None and said.fingerprint == fingerprint(raw) and sorted(said.images) == sorted(listing.names)


UNREADABLE = """
import os, sys
from objrec.steps.command import main
from objrec.steps.preprocess import STEP
from objrec.system import reading

number, whole = int(sys.argv.pop(1)), open

def refuse(path, *args, **options):
    if str(path).endswith("cat/3.png"):
        raise OSError(number, os.strerror(number))
    return whole(path, *args, **options)

reading.open = refuse  # the workers are forked from here
main(STEP)
"""


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_now_ends_the_step(raw: Path, tmp_path: Path, number: int) -> None:
    outputs = [f"{split}_dir={tmp_path / split}" for split in SPLITS]
    command = [sys.executable, "-c", UNREADABLE, str(number), f"raw_data_dir={raw}", *outputs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and "cat/3.png cannot be read" in done.stderr, done.stderr
    assert not any((tmp_path / split).exists() for split in SPLITS)


def test_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw" / "cat").mkdir(parents=True)
    (tmp_path / "raw" / "cat" / "a.png").write_bytes(image(1))
    with pytest.raises(UserError, match="images of one class only"):
        preprocess(tmp_path / "raw", tmp_path / "out")
