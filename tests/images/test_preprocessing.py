"""The central square that a model sees, and the share of the image that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objrec.images.preprocessing import Preprocessing

CONSTANTS = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 80)])
def test_the_crop_takes_its_share_of_the_shorter_side_once(width: int, height: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    side = 0.75 * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box=box))
    preprocessing = Preprocessing(size=64, interpolation="bilinear", crop_pct=0.75, **CONSTANTS)
    found = preprocessing.pixels(tmp_path / "a.png", max_pixels=10**6)
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_a_reduced_decoding_has_enough_pixels_for_the_crop() -> None:
    assert Preprocessing(size=224, crop_pct=0.875, **CONSTANTS).target == 256
    assert Preprocessing(size=224, **CONSTANTS).target == 224
