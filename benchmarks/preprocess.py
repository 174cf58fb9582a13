"""Photographs to 224 px JPEG crops: decoders and resizers side by side, and what the preprocess step does.

    python benchmarks/preprocess.py PHOTOS.zip [--rounds 3] [--images 120] [--large 12] [--size 224]

``PHOTOS.zip`` holds photographs of usual web sizes; large ones (12 MP) are made by scaling them up. Every candidate
runs in two processes, candidates taking turns, each round over all images; rates are medians over rounds. PSNR is
against Pillow's full decoding and bicubic filter on the exact central square. The last line is the step's own function
with all that it does besides: reading, sha256, header checks, hashes, writing. A candidate that is not installed is
left out (for all of them: pip install opencv-python-headless). Prints tables for docs/benchmarks-preprocess.md.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

QUALITY = 95
Pixels = Any


def square(width: float, height: float) -> tuple[float, float, float, float]:
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def pillow(data: bytes, size: int, **options: Any) -> Pixels:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=square(*image.size), **options))


def pillow_draft(data: bytes, size: int, times: float = 2) -> Pixels:
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    drafted = image.draft("RGB", (int(times * size), int(times * size)))
    box = square(*(drafted[1][2:] if drafted else (width, height)))
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box))


def opencv_area(data: bytes, size: int) -> Pixels:
    import cv2

    cv2.setNumThreads(1)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    height, width = image.shape[:2]
    left, top, right, bottom = map(int, square(width, height))
    return cv2.resize(image[top:bottom, left:right], (size, size), interpolation=cv2.INTER_AREA)[:, :, ::-1]


def turbo_pillow(data: bytes, size: int) -> Pixels:
    from objrec.images.decode import decode_stored
    from objrec.images.resize import pillow_resize

    image = decode_stored(data, max_pixels=1 << 40, target=size)
    return pillow_resize(image.pixels, square(image.width, image.height), size, "bicubic")


def full_vectorised(data: bytes, size: int) -> Pixels:
    from objrec.images.decode import decode_stored
    from objrec.images.preprocessing import crop_square

    return crop_square(decode_stored(data, max_pixels=1 << 40), size)


def ours(data: bytes, size: int) -> Pixels:
    from objrec.images.decode import decode_stored
    from objrec.images.preprocessing import crop_square

    return crop_square(decode_stored(data, max_pixels=1 << 40, target=size), size)


CANDIDATES: dict[str, Callable[[bytes, int], Pixels]] = {
    "Pillow, bicubic": pillow,
    "Pillow, reducing_gap=2": lambda data, size: pillow(data, size, reducing_gap=2.0),
    "Pillow, draft to twice the size": pillow_draft,
    "OpenCV, area": opencv_area,
    "simplejpeg reduced, Pillow bicubic": turbo_pillow,
    "simplejpeg in full, cykooz bicubic": full_vectorised,
    "simplejpeg reduced, cykooz bicubic (taken)": ours,
}
STEP = "the step's crop_file, with all it does"


def encode(pixels: Pixels, *, pillows: bool) -> bytes:
    if pillows:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()
    from objrec.images.jpeg import encode_jpeg

    return encode_jpeg(np.ascontiguousarray(pixels), quality=QUALITY)


def work(job: tuple[str, list[str], int, str]) -> float:
    """Crop the files of a share; returns seconds."""
    name, paths, size, out = job
    begin = time.perf_counter()
    if name == STEP:
        from objrec.images.budget import MemoryShare
        from objrec.preprocess.crop import crop_file

        share = MemoryShare.among(1)
        for path in paths:
            target, limits = f"{out}/{Path(path).name}", {"max_pixels": 1 << 40, "share": share}
            found = crop_file(path, target, nullcontext, size=size, quality=QUALITY, **limits)
            assert not found.problem, found
    else:
        for path in paths:
            encode(CANDIDATES[name](Path(path).read_bytes(), size), pillows=not name.startswith("simplejpeg"))
    return time.perf_counter() - begin


def psnr(a: Pixels, b: Pixels) -> float:
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compare(paths: list[str], size: int, rounds: int, out: str) -> None:
    names = [n for n in CANDIDATES if _runs(n, paths[0], size)] + [STEP]
    rates: dict[str, list[float]] = {name: [] for name in names}
    with get_context("fork").Pool(2) as pool:
        shares = [paths[0::2], paths[1::2]]
        for turn in range(rounds + 1):
            for name in names:
                given = [share[:2] if turn == 0 else share for share in shares]  # the first turn imports and warms
                begin = time.perf_counter()
                pool.map(work, [(name, share, size, out) for share in given], chunksize=1)
                if turn:
                    rates[name].append(len(paths) / (time.perf_counter() - begin))
    print("| decoder, resizer | images/s | against Pillow | PSNR, median | PSNR, least |")
    print("| --- | --- | --- | --- | --- |")
    peer = rates["Pillow, bicubic"]
    data = [Path(p).read_bytes() for p in paths]
    expected = [pillow(d, size) for d in data]
    for name in names:
        ratios = [a / b for a, b in zip(rates[name], peer, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        quality = "as above | as above"
        if name != STEP:
            found = [psnr(CANDIDATES[name](d, size), e) for d, e in zip(data, expected, strict=True)]
            quality = f"{statistics.median(found):.1f} dB | {min(found):.1f} dB"
        print(f"| {name} | {statistics.median(rates[name]):.0f} | {spread} | {quality} |", flush=True)


def _runs(name: str, path: str, size: int) -> bool:
    try:
        CANDIDATES[name](Path(path).read_bytes(), size)
    except ImportError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--large", type=int, default=12)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(arguments.photos) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg"))]
        for folder in ("web", "large", "out"):
            (Path(place) / folder).mkdir()
        web, large = [], []
        for i, name in enumerate(names[: arguments.images]):
            web.append(f"{place}/web/{i}.jpg")
            Path(web[-1]).write_bytes(archive.read(name))
        for i, path in enumerate(web[: arguments.large]):
            large.append(f"{place}/large/{i}.jpg")
            image = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
            image.save(large[-1], quality=90)
        print(f"{len(web)} photographs as they are, to {arguments.size} px:\n")
        compare(web, arguments.size, arguments.rounds, f"{place}/out")
        print(f"\n{len(large)} photographs of 4000 x 3000 px:\n")
        compare(large, arguments.size, max(1, arguments.rounds // 2), f"{place}/out")


if __name__ == "__main__":
    main()
