"""Near-duplicates between train and test, on real photographs."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from helpers.data import shared_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from objrec.config.load import load_config
from objrec.images.decode import decode_stored
from objrec.images.hashing import HASHED, hash_image
from objrec.images.near_duplicates import NearbyIndex, near_pairs
from objrec.images.repeats import near_duplicates


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
    pairs = near_duplicates(files, tmp_path / "train", max_pixels=10**8, distance=14)
    assert sorted(int(files[p["test"]].stem) for p in pairs) == list(range(20))
    assert all(files[p["test"]].stem == Path(p["train"]).stem for p in pairs)


def saved(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def cut(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, tuple[float, Callable[[Image.Image], bytes]]] = {  # least share that is found, of 120 photographs
    "recompressed": (0.99, lambda image: saved(image, 40)),
    "a third": (
        0.99,
        lambda image: saved(image.resize((image.width // 3, image.height // 3), Image.Resampling.BICUBIC)),
    ),
    "brighter": (0.99, lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15))),
    "cropped by 2 %": (0.8, lambda image: saved(cut(image, 0.02))),
}


def test_the_one_rule_finds_what_the_docs_say_and_confuses_no_two_photographs() -> None:
    def code(data: bytes) -> int:
        return hash_image(decode_stored(data, max_pixels=10**8, target=HASHED)).code

    bits = load_config([]).images.near_duplicate_bits
    assert bits is not None
    originals: list[int] = []
    found = dict.fromkeys(COPIES, 0)
    with zipfile.ZipFile(shared_file("imagenet-photos-120.zip")) as archive:
        for name in sorted(n for n in archive.namelist() if not n.endswith("/")):
            data = archive.read(name)
            originals.append(code(data))
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
            for kind, (_, change) in COPIES.items():
                found[kind] += (originals[-1] ^ code(change(image))).bit_count() <= bits
    assert {kind: n / len(originals) for kind, n in found.items() if n / len(originals) < COPIES[kind][0]} == {}
    assert not list(near_pairs(originals, bits))


@given(st.integers(0, 15), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_both_searches_find_just_the_pairs_within_the_distance(distance: int, seed: int) -> None:
    random = Random(seed)
    codes = [random.getrandbits(128) for _ in range(40)]
    for code in codes[:20]:
        codes.append(
            functools.reduce(lambda c, bit: c ^ 1 << bit, random.sample(range(128), random.randint(0, 18)), code)
        )
    expected = {(i, j) for j in range(60) for i in range(j) if (codes[i] ^ codes[j]).bit_count() <= distance}
    index: NearbyIndex[int] = NearbyIndex(distance)
    one = set()
    for j, code in enumerate(codes):
        one |= {(i, j) for i, bits in index.near(code) if bits == (codes[i] ^ code).bit_count()}
        index.add(code, j)
    pairs = [(int(x), int(y)) for a, b in near_pairs(codes, distance) for x, y in zip(a, b, strict=True)]
    assert one == {(min(p), max(p)) for p in pairs} == expected
