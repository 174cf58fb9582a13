"""Only the JPEGs that it was made for reach the reduced decoding; no header crashes a reader, and the readers agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.data import SHARED_DATA, shared_file
from helpers.jpeg_fuzz import bases

from objrec.images.decode import decode
from objrec.images.jpeg import coded_size

FUZZ = Path(__file__).parents[1] / "helpers" / "jpeg_fuzz.py"
LOSSLESS = "cases/lossless-sof3.jpg"


def test_the_usual_frames_take_the_short_way() -> None:
    sizes = {name: coded_size(data) for name, data in bases().items()}
    assert sizes.pop("cmyk") is None
    assert set(sizes.values()) == {(75, 59)}


def frame_of(data: bytes) -> int:
    return next(at for at in range(len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))


@pytest.mark.parametrize("name", ["420", "progressive", "grey"])
def test_any_other_frame_does_not(name: str) -> None:
    data = bases()[name]
    at = frame_of(data)
    length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    others = {f"marker {m:x}": {1: m} for m in [*range(0xC3, 0xD0), *range(0xD0, 0xE0), 0x01, 0xF0, 0x00, 0xFF]}
    others |= {f"{bits} bits": {4: bits} for bits in (0, 2, 12, 16)}
    others |= {"no lines yet": {5: 0, 6: 0}, "no width": {7: 0, 8: 0}, "two components": {9: 2}, "four": {9: 4}}
    others |= {"short": {3: 8}, "sampling 0": {11: 0}, "sampling 3": {11: 0x31}, "sampling 4 x 4": {11: 0x44}}
    if length > 2 + 8 + 3:
        others |= {"finer colour": {14: 0x21}, "colours differ": {17: 0x12}}
    for what, changes in others.items():
        changed = bytearray(data)
        for offset, value in changes.items():
            changed[at + offset] = value
        assert coded_size(bytes(changed)) is None, what
    assert coded_size(data[:at] + data[at : at + length] + data[at:]) is None, "two frames"
    for number in range(at + length + 4):
        assert coded_size(data[:number]) is None


@pytest.mark.parametrize("target", [None, 8, 32])
def test_a_lossless_jpeg_is_read_the_long_way(target: int | None) -> None:
    data = shared_file(LOSSLESS).read_bytes()
    assert coded_size(data) is None
    assert decode(data, max_pixels=10**6, target=target).size == (320, 240)


def fuzz(count: int, seed: int) -> dict[str, object]:
    files = [str(SHARED_DATA / LOSSLESS)] if (SHARED_DATA / LOSSLESS).is_file() else []
    run = subprocess.run(
        [sys.executable, str(FUZZ), str(count), str(seed), *files],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_PERTURB_": "85"},
    )
    *_, last = run.stdout.splitlines() or ["nothing"]
    assert run.returncode == 0, f"{last}\n{run.stderr[-2000:]}"
    found: dict[str, object] = json.loads(last)
    return found


def test_mutated_headers_crash_nothing_and_the_readers_agree() -> None:
    found = fuzz(2000, seed=0)
    counts = found["counts"]
    assert isinstance(counts, dict) and min(counts["ok"], counts["corrupt"], counts["the short way"]) > 100
    assert found["differ"] == []


@pytest.mark.slow
def test_every_mutation() -> None:
    found = fuzz(1_000_000, seed=0)
    assert found["differ"] == []
