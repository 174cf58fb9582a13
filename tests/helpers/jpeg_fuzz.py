"""Decode JPEGs with mutated markers and header fields, in a process that may die.

``jpeg_fuzz.py COUNT SEED [FILE ...]`` prints each mutation before it is tried (the last line of a process that died
says which), then as JSON what the readers disagree on: the reduced and the full decoding, and Pillow alone.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from objrec.images import decode as decoding
from objrec.images.decode import ImageError, decode
from objrec.images.jpeg import coded_size

MAX_PIXELS = 50_000
Mutation = tuple[str, int, int]  # name of the file, offset, new value of the byte


def bases() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 15, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((75, 59), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    ways = {
        "444": (image, {"subsampling": "4:4:4"}),
        "420": (image, {"subsampling": "4:2:0"}),
        "422": (image, {"subsampling": "4:2:2", "restart_marker_blocks": 4}),
        "progressive": (image, {"progressive": True}),
        "progressive grey": (image.convert("L"), {"progressive": True}),
        "grey": (image.convert("L"), {"optimize": True}),
        "cmyk": (image.convert("CMYK"), {}),
        "exif": (image, {"exif": exif, "comment": b"a comment"}),
        "rgb": (image, {"keep_rgb": True}),
    }
    found = {}
    for name, (variant, options) in ways.items():
        file = io.BytesIO()
        variant.save(file, "JPEG", quality=80, **options)
        found[name] = file.getvalue()
    return found


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Offset, marker and length of every segment, of those between the scans too."""
    at = 2
    while 0 <= at < len(data) - 4:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        yield at, marker, length
        at += 2 + length
        if marker == 0xDA:  # on to the next marker that is neither a stuffed byte nor a restart
            while at < len(data) - 1 and (data[at] != 0xFF or data[at + 1] in (0, *range(0xD0, 0xD8))):
                at += 1
            if data[at + 1] == 0xD9:
                return


def mutations(name: str, data: bytes) -> Iterator[Mutation]:
    """Every value of every marker, of every byte of the frame and scan headers and of every length; a few elsewhere."""
    draw = random.Random(name)
    for at, marker, length in segments(data):
        whole = length if marker in (0xC0, 0xC1, 0xC2, 0xDA, 0xDD) else 2
        for offset in range(at + 1, at + 2 + length):
            everything = range(256) if offset < at + 2 + whole else [*draw.sample(range(256), 3), 0, 255]
            yield from ((name, offset, value) for value in everything if value != data[offset])


def verdict(data: bytes, target: int | None) -> str:
    try:
        decode(data, max_pixels=MAX_PIXELS, target=target)
    except ImageError as error:
        return error.status
    return "ok"


def verdicts(data: bytes) -> tuple[str, str, str]:
    full, reduced = verdict(data, None), verdict(data, 8)
    short_way = decoding.plain_size, decoding.coded_size
    decoding.plain_size = decoding.coded_size = lambda _: None
    try:
        return full, reduced, verdict(data, None)
    finally:
        decoding.plain_size, decoding.coded_size = short_way


def main(count: int, seed: int, files: list[str]) -> None:
    given = {file: Path(file).read_bytes() for file in files}
    originals = bases() | given
    tried = [mutation for name, data in originals.items() for mutation in mutations(name, data)]
    random.Random(seed).shuffle(tried)
    counts: Counter[str] = Counter()
    differ: list[tuple[str, ...]] = []
    for name in given:
        print(f"{name} as it is", flush=True)
        counts[verdict(given[name], None)] += 1
        counts[verdict(given[name], 8)] += 1
    for name, offset, value in tried[:count]:
        print(f"{name}: byte {offset} becomes {value}", flush=True)
        data = bytearray(originals[name])
        data[offset] = value
        found = verdicts(bytes(data))
        counts[found[0]] += 1
        counts["the short way"] += coded_size(bytes(data)) is not None
        if len(set(found)) > 1:
            differ.append((name, str(offset), str(value), *found))
    print(json.dumps({"all": len(tried), "tried": count, "counts": counts, "differ": differ}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
