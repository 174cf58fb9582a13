"""Near-duplicates between train and test, on real photographs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from conftest import shared_file
from PIL import Image

from objrec.evaluation.duplicates import near_duplicates


def test_scaled_and_recompressed_photographs_are_found_and_others_are_not(tmp_path: Path) -> None:
    test, train = tmp_path / "test" / "x", tmp_path / "train" / "x"
    test.mkdir(parents=True)
    train.mkdir(parents=True)
    with zipfile.ZipFile(shared_file("imagenet-photos-120.zip")) as archive:
        for i, name in enumerate(sorted(archive.namelist())[:40]):
            with Image.open(io.BytesIO(archive.read(name))) as opened:
                image = opened.convert("RGB")
            if i < 10:  # in both, smaller
                image.save(test / f"{i}.jpg", quality=92)
                image.resize((image.width // 3, image.height // 3), Image.Resampling.LANCZOS).save(train / f"{i}.jpg")
            elif i < 20:  # in both, badly compressed
                image.save(test / f"{i}.png")
                image.save(train / f"{i}.jpg", quality=25)
            else:
                image.save((test if i % 2 else train) / f"{i}.jpg")
    files = sorted(test.iterdir())
    pairs = near_duplicates(files, tmp_path / "train", max_pixels=10**8)
    assert sorted(int(files[p["test"]].stem) for p in pairs) == list(range(20))
    assert all(files[p["test"]].stem == Path(p["train"]).stem for p in pairs)
