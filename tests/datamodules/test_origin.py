"""What a model folder keeps of the raw images that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import make_images

from objrec.config.errors import UserError
from objrec.datamodules.origin import find_origin
from objrec.images.image_folder import Listing, fingerprint, list_classes
from objrec.images.raw import read_hashes, read_raw_images, write_hashes
from objrec.models.card import file_sha256


@pytest.fixture
def train_dir(tmp_path: Path) -> Path:
    return make_images(tmp_path / "train", per_class=2)


def describe(folder: Path, **changes: Any) -> Listing:
    """Write ``split.json`` as preprocess does."""
    names = list_classes(folder).names
    summary = {
        "fingerprint": fingerprint(folder),
        "raw_fingerprint": "raw",
        "images": {name: f"{i:016x}" for i, name in enumerate(names)},
        "image_size": 32,
        **changes,
    }
    (folder / "split.json").write_text(json.dumps(summary))
    return list_classes(folder)


def test_a_split_of_preprocess_names_its_raw_images(train_dir: Path) -> None:
    origin = find_origin(describe(train_dir), [0, 3])
    assert origin.data == "raw" and origin.trained_on == [f"{0:016x}", f"{3:016x}"]
    larger = find_origin(describe(train_dir, image_size=64), [0])
    assert larger.split == origin.split and larger.settings != origin.settings


def test_other_crops_of_the_same_raw_images_are_the_same_data(train_dir: Path, tmp_path: Path) -> None:
    before = find_origin(describe(train_dir), range(6))
    other = make_images(tmp_path / "other", per_class=2, first=10)
    for new, old in zip(sorted(other.rglob("*.jpg")), sorted(train_dir.rglob("*.jpg")), strict=True):
        new.rename(new.with_name(old.name))
    after = find_origin(describe(other), range(6))
    assert (after.data, after.split, after.trained_on) == (before.data, before.split, before.trained_on)


def test_a_folder_of_somebody_is_known_by_its_files(train_dir: Path) -> None:
    listing = list_classes(train_dir)
    origin = find_origin(listing, [1])
    assert origin.data == fingerprint(train_dir) and origin.settings is None
    assert origin.trained_on == [file_sha256(listing.path(1))[:16]]


@pytest.mark.parametrize(
    "change", [{"fingerprint": "of another content"}, {"raw_fingerprint": 5}, {"images": []}, {"images": {"a/b": 5}}]
)
def test_a_split_json_that_does_not_hold_is_passed_over(train_dir: Path, change: dict[str, Any]) -> None:
    listing = describe(train_dir, **change)
    assert read_raw_images(train_dir, fingerprint(train_dir)) is None
    assert find_origin(listing, []).trained_on == []


def test_hashes_are_small_the_same_each_time_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "hashes.gz"
    write_hashes(path, ["b" * 16, "a" * 16, "b" * 16])
    first = path.read_bytes()
    write_hashes(path, ["a" * 16, "b" * 16])
    assert path.read_bytes() == first and read_hashes(path) == {"a" * 16, "b" * 16}
    for content in (b"rotten", first[:-3], first[:12] + b"\xff" * 9 + first[21:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            read_hashes(path)
