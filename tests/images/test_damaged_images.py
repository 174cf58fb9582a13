"""Damaged and odd files, made here: each becomes the right image, or is left out for the right reason."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objrec.config.load import load_config
from objrec.images.decode import ImageError, decode
from objrec.images.jpeg import decode_jpeg, plain_size
from objrec.images.preprocessing import Preprocessing
from objrec.steps.base import restrict
from objrec.steps.preprocess import STEP

MAX_PIXELS = 10**6
GROUND = 128


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Red above left, green above right, blue below left, yellow below right: any turn shows."""
    image = Image.new("RGB", (width, height))
    for i, colour in enumerate([(220, 30, 30), (30, 180, 30), (30, 30, 220), (220, 220, 30)]):
        x, y = i % 2 * width // 2, i // 2 * height // 2
        image.paste(colour, (x, y, x + width // 2, y + height // 2))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def is_scene(image: Image.Image, tolerance: float = 8) -> bool:
    shown = np.asarray(image.resize((32, 32)), dtype=np.int16)
    expected = np.asarray(scene().resize((32, 32)), dtype=np.int16)
    return float(np.abs(shown - expected).mean()) < tolerance


def status(data: bytes, **options: int) -> str:
    try:
        decode(data, max_pixels=MAX_PIXELS, **options)
    except ImageError as error:
        return error.status
    return "ok"


def noise(size: tuple[int, int] = (160, 120)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size[0] * 2, size[1] * 2), Image.Resampling.BICUBIC)


WHOLE = {
    "jpeg": encoded(noise(), "JPEG"),
    "progressive": encoded(noise(), "JPEG", progressive=True),
    "png": encoded(noise(), "PNG"),
    "webp": encoded(noise(), "WEBP"),
    "gif": encoded(noise(), "GIF"),
    "bmp": encoded(noise(), "BMP"),
    "tiff": encoded(noise(), "TIFF"),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("target", [None, 32])
def test_a_truncated_file_is_refused_at_every_tenth(kind: str, target: int | None) -> None:
    data = WHOLE[kind]
    decode(data, max_pixels=MAX_PIXELS, target=target)
    for tenth in range(10):
        with pytest.raises(ImageError) as refused:
            decode(data[: len(data) * tenth // 10], max_pixels=MAX_PIXELS, target=target)
        assert refused.value.status in ("corrupt", "unsupported") and refused.value.reason


@pytest.mark.parametrize("kind", WHOLE)
def test_flipped_bits_make_an_image_or_a_reason(kind: str) -> None:
    draw = random.Random(kind)
    for _ in range(40):
        data = bytearray(WHOLE[kind])
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            image = decode(bytes(data), max_pixels=MAX_PIXELS, target=draw.choice([None, 32]))
        except ImageError as error:
            assert error.reason
        else:
            assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS
            image.load()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_are_applied(orientation: int, kind: str) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # FLIP_LEFT_RIGHT, ROTATE_180, ..., as the camera held it
    stored = scene(480, 320)
    if orientation in back:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    for target in (None, 32):
        image = decode(data, max_pixels=MAX_PIXELS, target=target)
        assert image.width > image.height and is_scene(image)
    square = Preprocessing(size=32, mean=[0, 0, 0], std=[1, 1, 1]).pixels(data, max_pixels=MAX_PIXELS)
    assert is_scene(Image.fromarray(square), tolerance=12)


def test_damaged_metadata_does_not_cost_the_image() -> None:
    data = encoded(scene(), "JPEG", exif=b"Exif\0\0not a header at all")
    assert is_scene(decode(data, max_pixels=MAX_PIXELS))


@pytest.mark.parametrize("target", [None, 32])
def test_unusual_modes_become_rgb(target: int | None) -> None:
    image = scene()
    sixteen = Image.fromarray(np.asarray(image.convert("L"), dtype=np.uint16) * 257)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    palette = image.quantize(8)
    made = {
        "cmyk": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "grey": encoded(image.convert("L"), "JPEG"),
        "palette": encoded(palette, "PNG"),
        "animated": encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)] * 3),
        "moving": encoded(image, "WEBP", save_all=True, append_images=[Image.new("RGB", image.size)] * 3, quality=95),
        "two pages": encoded(image, "TIFF", save_all=True, append_images=[Image.new("RGB", image.size)]),
        "telephone": encoded(image, "MPO", save_all=True, append_images=[Image.new("RGB", image.size)], quality=95),
        "bits": encoded(image.convert("1"), "PNG"),
        "16 bit": encoded(sixteen, "PNG"),
        "clear": encoded(clear, "PNG"),
        "clear palette": encoded(palette, "PNG", transparency=palette.getpixel((2, 2))),
        "grey alpha": encoded(clear.convert("LA"), "PNG"),
    }
    found = {name: decode(data, max_pixels=MAX_PIXELS, target=target) for name, data in made.items()}
    assert {i.mode for i in found.values()} == {"RGB"}
    assert {i.size for i in found.values()} == {(96, 64)} | ({(72, 48)} if target else set()), "JPEGs may be reduced"
    for name in ("cmyk", "palette", "animated", "moving", "two pages", "telephone"):
        assert is_scene(found[name]), name
    grey = np.asarray(image.convert("L"), dtype=np.int16)
    for name in ("16 bit", "grey"):
        if found[name].size != image.size:
            continue
        assert np.abs(np.asarray(found[name].convert("L"), dtype=np.int16) - grey).mean() < 3, name
    assert (
        np.unique(np.asarray(found["clear"])).tolist()
        == [GROUND]
        == np.unique(np.asarray(found["grey alpha"])).tolist()
    )
    assert found["clear palette"].getpixel((2, 2)) == (GROUND,) * 3, "nothing is there"
    assert found["clear palette"].getpixel((90, 60)) == pytest.approx((220, 220, 30), abs=8)


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    data = bytearray(encoded(scene(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def two_headed_jpeg() -> bytes:
    """Says one size where Pillow looks first, and another in a second frame header."""
    data = encoded(scene(), "JPEG")
    at = data.index(b"\xff\xc0")
    length = struct.unpack(">H", data[at + 2 : at + 4])[0] + 2
    second = bytearray(data[at : at + length])
    second[5:9] = struct.pack(">HH", 60000, 60000)
    return data[: at + length] + bytes(second) + data[at + length :]


def test_a_header_that_promises_too_much_is_refused_before_decoding() -> None:
    assert status(huge_png(50000, 50000)) == "too_large"
    assert status(huge_png(2001, 500)) == "too_large"
    assert status(huge_jpeg()) == "too_large"
    assert status(two_headed_jpeg()) in ("corrupt", "too_large")
    assert decode_jpeg(encoded(scene(), "JPEG"), size=(95, 64), at_least=None) is None, "readers must agree on the size"


def test_only_a_jpeg_that_is_upright_for_sure_is_read_the_short_way() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    turned = scene().transpose(Image.Transpose.ROTATE_180)
    for image in (scene(), scene().convert("L")):
        assert plain_size(encoded(image, "JPEG")) == (96, 64)
    for options in ({"exif": exif}, {"xmp": xmp}):
        data = encoded(turned, "JPEG", quality=95, **options)
        assert plain_size(data) is None
        assert is_scene(decode(data, max_pixels=MAX_PIXELS))
    chatty = b"\xff\xd8" + 2000 * b"\xff\xfe\x00\x02" + encoded(scene(), "JPEG")[2:]  # comments that say nothing
    assert is_scene(decode(chatty, max_pixels=MAX_PIXELS))
    cmyk = encoded(scene().convert("CMYK"), "JPEG")
    for data in (b"", encoded(scene(), "PNG"), cmyk, chatty, b"\xff\xd8\xff\xe0"):
        assert plain_size(data) is None


def test_extreme_shapes() -> None:
    preprocessing = Preprocessing(size=32, mean=[0, 0, 0], std=[1, 1, 1])
    for size in ((1, 1), (1, 20000), (20000, 1), (3, 2)):
        for kind in ("PNG", "JPEG"):
            data = encoded(Image.new("RGB", size, (200, 100, 50)), kind, quality=95)
            pixels = preprocessing.pixels(data, max_pixels=MAX_PIXELS)
            assert pixels.shape == (32, 32, 3) and np.abs(pixels.reshape(-1, 3).mean(axis=0) - (200, 100, 50)).max() < 4
            assert status(data, min_size=8) == "too_small"


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4", b"GIF89a"]
)
def test_other_things_are_no_images(data: bytes) -> None:
    assert status(data) in ("unsupported", "corrupt")


def test_the_step_takes_the_whole_corpus(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name, base in (("cat", 0), ("dog", 100)):
        (raw / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(base + i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(raw / name / f"good{i}.png")
    jpeg = WHOLE["jpeg"]
    bad = {f"cut{t}.jpg": jpeg[: len(jpeg) * t // 10] for t in range(10)}
    bad |= {"huge.png": huge_png(50000, 50000), "text.jpg": b"hello", "page.png": b"<html>"}
    for name, data in bad.items():
        (raw / "cat" / name).write_bytes(data)
    (raw / "dog" / "wrong.png").write_bytes(encoded(scene(), "JPEG"))  # another suffix than content
    (raw / "dog" / "long.png").write_bytes(encoded(Image.new("RGB", (1, 20000)), "PNG"))
    outputs = {f"{s}_dir": tmp_path / s for s in ("train", "valid", "test")}
    for folder in outputs.values():
        folder.mkdir()
    config = load_config(["preprocess.exact_split=true", f"images.max_pixels={MAX_PIXELS}"])
    STEP.run(restrict(config, STEP), {"raw_data_dir": raw}, outputs)
    summaries = [json.loads((folder / "split.json").read_text()) for folder in outputs.values()]
    assert sum(sum(s["counts"].values()) for s in summaries) == 26
    reasons = {row["file"]: row["reason"].split(":")[0] for row in summaries[0]["left_out"]}
    assert set(reasons) == set(bad)
    assert reasons.pop("huge.png") == "too_large"
    assert set(reasons.values()) <= {"corrupt", "unsupported"}
    page = (tmp_path / "train" / "leakage.html").read_text()
    assert "not usable: corrupt" in page and "http" not in page.replace("http-equiv", "")
