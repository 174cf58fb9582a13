"""Splits are a function of content: properties, and the step on odd files."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.datamodules.split import SPLITS, assign_splits
from objrec.images.folders import fingerprint
from objrec.pipeline.step import restrict
from objrec.steps.preprocess import STEP

SHARES = [0.7, 0.2, 0.1]


def many(n: int, prefix: str = "g") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


@given(st.integers(0, 5), st.integers(200, 400), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_new_groups_move_no_old_ones(seed: int, old: int, new: int) -> None:
    before = assign_splits({"a": many(old)}, shares=SHARES, seed=seed)
    after = assign_splits({"a": many(old) + many(new, "new")}, shares=SHARES, seed=seed)
    assert {g: after[g] for g in before} == before


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_does_not_matter(random: object) -> None:
    groups = many(300)
    shuffled = list(groups)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for exact in (False, True):
        assert assign_splits({"a": groups}, shares=SHARES, seed=3, exact=exact) == assign_splits(
            {"a": shuffled}, shares=SHARES, seed=3, exact=exact
        )


@pytest.mark.parametrize("count", [10, 37, 100, 1000])
def test_exact_counts(count: int) -> None:
    assigned = assign_splits({"a": many(count)}, shares=SHARES, seed=0, exact=True)
    counts = Counter(assigned.values())
    assert counts["train"] == round(count * 0.7) and counts["valid"] == round(count * 0.2)
    assert sum(counts.values()) == count


def test_shares_are_met_within_chance() -> None:
    counts = Counter(assign_splits({"a": many(10_000)}, shares=SHARES, seed=0).values())
    assert [round(counts[s] / 10_000, 2) for s in SPLITS] == pytest.approx(SHARES, abs=0.02)


def test_the_seed_decides() -> None:
    assert assign_splits({"a": many(300)}, shares=SHARES, seed=0) != assign_splits(
        {"a": many(300)}, shares=SHARES, seed=1
    )


def test_a_class_too_small_is_told_with_the_cure() -> None:
    with pytest.raises(UserError, match=r"(?s)class 'b' has 2 distinct pictures.*preprocess.exact_split=true"):
        assign_splits({"a": many(300), "b": many(2, "b")}, shares=SHARES, seed=0)


def picture(colour: int, size: tuple[int, int] = (80, 50), kind: str = "PNG", **options: object) -> bytes:
    image = Image.linear_gradient("L").resize(size).rotate(colour * 7).convert("RGB")
    image.putpixel((colour % size[0], colour % size[1]), (colour, 255 - colour, 7))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


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
            (tmp_path / "raw" / name / f"{i}.png").write_bytes(picture(base + i))
    return tmp_path / "raw"


def test_bad_files_are_left_out_and_named(raw: Path, tmp_path: Path) -> None:
    (raw / "cat" / "text.jpg").write_bytes(b"no picture")
    (raw / "cat" / "half.png").write_bytes(picture(50)[:300])
    (raw / "dog" / "again.png").write_bytes(picture(100))
    for name in ("cat", "dog"):
        (raw / name / "both.png").write_bytes(picture(60))
    summary = preprocess(raw, tmp_path / "out")["train"]
    left_out = {f"{p['class']}/{p['file']}": p["reason"] for p in summary["left_out"]}  # type: ignore[attr-defined, index]
    assert set(left_out) == {"cat/text.jpg", "cat/half.png", "cat/both.png", "dog/both.png", "dog/again.png"} or set(
        left_out
    ) == {"cat/text.jpg", "cat/half.png", "cat/both.png", "dog/both.png", "dog/0.png"}
    assert left_out["cat/both.png"] == "ambiguous: found under cat, dog"


def test_pictures_are_upright_squares_with_their_aspect_kept(raw: Path, tmp_path: Path) -> None:
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


def test_one_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw" / "cat").mkdir(parents=True)
    (tmp_path / "raw" / "cat" / "a.png").write_bytes(picture(1))
    with pytest.raises(UserError, match="one class only"):
        preprocess(tmp_path / "raw", tmp_path / "out")
