"""What is written as a crop is close to Pillow's bicubic of the full image, at small sizes too."""

from __future__ import annotations

import io
import zipfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from helpers.data import shared_file
from PIL import Image

from objrec.images.budget import MemoryShare
from objrec.preprocess.crop import crop_file

MAX_PIXELS = 10**8
SHARE = MemoryShare.among(1)


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((found.astype(float) - expected) ** 2).mean()))


def bicubic(image: Image.Image, size: int) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box))


def written(source: Path, size: int, quality: int | None = None) -> np.ndarray:
    target = source.with_suffix(".crop.jpg")
    assert not crop_file(
        str(source), str(target), nullcontext, size=size, quality=quality, max_pixels=MAX_PIXELS, share=SHARE
    ).problem
    return np.asarray(Image.open(target))


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128])
def test_photographs_keep_their_detail(size: int, tmp_path: Path) -> None:
    found = []
    with zipfile.ZipFile(shared_file("imagenet-photos-120.zip")) as archive:
        for number, name in enumerate(
            sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg")))[::6]
        ):
            path = tmp_path / f"{number}.jpg"
            path.write_bytes(archive.read(name))
            found.append(psnr(written(path, size), bicubic(Image.open(path), size)))
    assert np.median(found) > 39 and min(found) > 32


@pytest.mark.parametrize(("size", "least"), [(16, 40), (48, 40), (64, 40), (223, 40), (224, 30)])
def test_the_encoder_is_finer_below_the_usual_size_unless_it_is_named(size: int, least: float, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((size // 2, size // 2), Image.Resampling.BOX).resize((size, size))
    image.save(path)
    default, named = (psnr(written(path, size, quality), np.asarray(image)) for quality in (None, 60))
    assert default > least and named < default
    file = io.BytesIO((tmp_path / "noise.crop.jpg").read_bytes())
    assert all(component[1:3] == (1, 1) for component in Image.open(file).layer), "full chroma"
