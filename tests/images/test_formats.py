"""Depths are scaled as declared, formats are read or refused with the cure, and no library writes to the terminal."""

from __future__ import annotations

import base64
import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objrec.images import formats
from objrec.images.decode import ImageError, decode
from objrec.ingest.examine import examine

MAX_PIXELS = 10**7
HEIC = base64.b64decode(  # 64 x 48 pixels, red above blue
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA"
    "AAEAAQAAAAABoQABAAAAAAAAACkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAA"
    "AHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAA"
    "MAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAADFtZGF0AAAAJSgBr1j5Et3/zBv/czIa"
    "eXLxzDU/xqC5lp9xetqabqFYe5JXUHA="
)


def tiff(samples: bytes, *, width: int, bits: int, kind: int = 1, photometric: int = 1, order: str = "<") -> bytes:
    """One row of grey, uncompressed. ``kind``: 1 unsigned, 2 signed, 3 float."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, 1)]
    tags += [(279, len(samples)), (339, kind)]
    start = 8 + 2 + 12 * len(tags) + 4
    rows = b"".join(
        struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", start if tag == 273 else value)
        for tag, value in tags
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(tags)) + rows + bytes(4) + samples


def png(rows: bytes, *, width: int, bits: int, colours: int = 0, key: tuple[int, ...] = ()) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return (
        b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")
    )


def shown(data: bytes) -> list[int]:
    """The first row, of equal channels."""
    pixels = np.asarray(decode(data, max_pixels=MAX_PIXELS))
    assert (pixels[..., :1] == pixels).all()
    return [int(v) for v in pixels[0, :, 0]]


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as refused:
        decode(data, max_pixels=MAX_PIXELS)
    return f"{refused.value.status}: {refused.value.reason}"


def test_integers_are_scaled_by_their_declared_bits() -> None:
    for values in ([0, 1, 200, 255], [0, 300, 4095, 65535], [65535, 65535, 65535, 65535]):
        expected = [round(v / 257) for v in values]
        little, big = struct.pack("<4H", *values), struct.pack(">4H", *values)
        assert shown(png(big, width=4, bits=16)) == expected, "a dark frame is dark, whatever else is in it"
        assert shown(tiff(little, width=4, bits=16)) == expected
        assert shown(tiff(big, width=4, bits=16, order=">")) == expected
        assert shown(tiff(little, width=4, bits=16, photometric=0)) == [255 - e for e in expected]
    assert shown(tiff(bytes([0, 0x0F, 0xFF]), width=2, bits=12)) == [0, 255]


def test_floats_run_from_0_to_1_and_nothing_else_is_guessed() -> None:
    assert shown(tiff(struct.pack("<4f", 0, 0.5, 1, 1.2), width=4, bits=32, kind=3)) == [0, 128, 255, 255]
    assert shown(tiff(struct.pack("<2f", 0, 0.01), width=2, bits=32, kind=3)) == [0, 3]
    for values in ((0, 255), (0, float("nan")), (float("-inf"), 0)):
        assert "floats outside 0 to 1" in refusal(tiff(struct.pack("<2f", *values), width=2, bits=32, kind=3))
    for kind in (1, 2):
        assert "32-bit integers" in refusal(tiff(struct.pack("<2I", 0, 9), width=2, bits=32, kind=kind))
    assert "16-bit integers" in refusal(tiff(struct.pack("<2h", 0, 9), width=2, bits=16, kind=2))
    assert refusal(tiff(struct.pack("<2h", 0, 9), width=2, bits=16, kind=2)).startswith("unsupported")


def test_the_transparent_colour_of_a_png_has_the_depth_of_its_pixels() -> None:
    wide = struct.pack(">4H", 0, 1000, 1001, 65535)
    assert shown(png(wide, width=4, bits=16, key=(1000,))) == [0, 128, 4, 255]
    assert shown(png(bytes([0, 7, 8, 255]), width=4, bits=8, key=(7,))) == [0, 128, 8, 255]
    assert shown(png(bytes([0x1B]), width=4, bits=2, key=(1,))) == [0, 128, 170, 255]
    assert shown(png(bytes([0x01, 0xEF]), width=4, bits=4, key=(1,))) == [0, 128, 238, 255]
    colours = struct.pack(">6H", *[0x1234] * 3, *[0x4321] * 3)
    assert shown(png(colours, width=2, bits=16, colours=2, key=(0x1234,) * 3)) == [128, 0x43]


def test_wide_samples_need_little_memory(tmp_path: Path) -> None:
    side = 2500
    grey = np.random.default_rng(0).integers(0, 2**16, (side, side), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "wide.tif")
    Image.fromarray(grey[:9, :9]).save(tmp_path / "small.tif")
    program = (
        "import resource, sys; from pathlib import Path; from objrec.images.decode import decode_stored\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode_stored(Path('small.tif'), max_pixels=10**8); before = peak()\n"
        "decode_stored(Path('wide.tif'), max_pixels=10**8); print(peak() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 / side**2 < 18, "bytes a pixel; the file itself is 2 of them"


def scene(kind: str, **options: object) -> bytes:
    image = Image.new("RGB", (64, 48), (220, 30, 30))
    image.paste((30, 30, 220), (0, 24, 64, 48))
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def is_scene(image: Image.Image) -> bool:
    above, below = (np.array(image.getpixel((32, y)), dtype=int) for y in (6, 42))
    return bool(np.abs(above - (220, 30, 30)).max() < 12 and np.abs(below - (30, 30, 220)).max() < 12)


@pytest.mark.parametrize(("kind", "extension"), [("AVIF", "avif"), ("HEIC", "heic")])
def test_what_cameras_and_browsers_make_is_read_under_the_same_limits(kind: str, extension: str) -> None:
    if kind == "HEIC":
        pytest.importorskip("pi_heif")
    data = HEIC if kind == "HEIC" else scene("AVIF")
    image = decode(data, max_pixels=MAX_PIXELS, target=16)
    assert image.size == (64, 48) and is_scene(image)
    assert examine(data, max_pixels=MAX_PIXELS, min_size=8).extension == extension
    for tenth in range(10):
        with pytest.raises(ImageError):
            decode(data[: len(data) * tenth // 10], max_pixels=MAX_PIXELS)
    for limits, status in (({"max_pixels": 3000}, "too_large"), ({"max_pixels": 10**6, "min_size": 64}, "too_small")):
        with pytest.raises(ImageError) as refused:
            decode(data, **limits)
        assert refused.value.status == status
    draw = random.Random(0)
    for _ in range(200):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            mutated[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            decode(bytes(mutated), max_pixels=MAX_PIXELS)
        except ImageError as error:
            assert error.reason


def test_an_avif_is_turned_as_it_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    image = decode(scene("AVIF", exif=exif), max_pixels=MAX_PIXELS)
    assert is_scene(image.transpose(Image.Transpose.ROTATE_180))


def test_what_is_not_read_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_has_heif", lambda: False)
    assert "pip install 'objrec[heic]'" in refusal(HEIC)
    assert "JPEG XL is not read" in refusal(b"\xff\x0a" + bytes(100))
    assert "not an image in one of JPEG, PNG" in refusal(b"<html>")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libtiff still writes")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg"])
def test_libtiff_does_not_write_to_the_terminal(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = scene("TIFF", compression=compression)
    draw = random.Random(0)
    refused = 0
    for _ in range(60):
        mutated = bytearray(data)
        for _ in range(5):
            mutated[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        try:
            decode(bytes(mutated), max_pixels=MAX_PIXELS)
        except ImageError:
            refused += 1
    assert refused > 5
    assert capfd.readouterr() == ("", "")
