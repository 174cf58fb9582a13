"""The near-duplicate index, the examination of images, the store and the yield table."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_server import encoded, image
from helpers.data import shared_file
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objrec.images.decode import Decoded, ImageError, decode
from objrec.images.hashing import hash_image
from objrec.images.near_duplicates import NearbyIndex
from objrec.ingest.examine import ExaminedImage, examine
from objrec.ingest.progress import yield_table
from objrec.ingest.selection import CandidateOutcome
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate


def with_code(code: int) -> ExaminedImage:
    rows, columns = code >> 64, code & (2**64 - 1)
    return ExaminedImage(sha256="0", size=1, width=9, height=9, extension="jpg", rows=rows, columns=columns)


BASE = 0x6A09E667F3BCC908BB67AE8584CAA73B  # about as many bits set as not, in each half
balanced = st.lists(st.integers(0, 127), max_size=12).map(lambda bits: BASE ^ sum(1 << b for b in set(bits)))


@given(
    codes=st.lists(balanced, min_size=1, max_size=12),
    flips=st.lists(st.integers(0, 127), max_size=10),
    distance=st.integers(0, 6),
)
def test_the_index_finds_what_comparing_all_finds(codes: list[int], flips: list[int], distance: int) -> None:
    index: NearbyIndex[tuple[int, int]] = NearbyIndex(distance)
    items = [(i, code) for i, code in enumerate(codes)]
    for item in items:
        index.insert(with_code(item[1]), item)
    asked = codes[0]
    for bit in flips:
        asked ^= 1 << bit
    near = [i for i in items if (i[1] ^ asked).bit_count() <= distance]
    found = sorted(index.find(with_code(asked)))
    if all(10 <= half.bit_count() <= 54 for half in (asked >> 64, asked & (2**64 - 1))):
        assert found == near
    else:
        assert found == [], "an image without features resembles nothing"


def test_photographs_resemble_their_copies_and_no_others() -> None:
    import zipfile

    with zipfile.ZipFile(shared_file("imagenet-photos-120.zip")) as archive:
        names = [n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg"))][:40]
        photographs = [archive.read(n) for n in names]
    index: NearbyIndex[list[int]] = NearbyIndex(6)
    items = [[i] for i in range(len(photographs))]
    found = 0
    for item, data in zip(items, photographs, strict=True):
        known = examine(data, max_pixels=10**8, min_size=1)
        assert list(index.find(known)) == []
        index.insert(known, item)
    for i, data in enumerate(photographs):
        image = decode(data, max_pixels=10**8)
        copy = encoded(image.resize((image.width // 2, image.height // 2)), "JPEG", quality=75)
        near = list(index.find(examine(copy, max_pixels=10**8, min_size=1)))
        assert near in ([], [[i]])
        found += len(near)
    assert found >= 0.9 * len(photographs)


def spoil(data: bytes, seed: int) -> bytes:
    """Flip bits, blank a stretch or take one out."""
    pick, spoilt = random.Random(seed), bytearray(data)
    start = pick.randrange(len(data))
    if seed % 3 == 0:
        for _ in range(8):
            spoilt[pick.randrange(len(data))] ^= 1 << pick.randrange(8)
    elif seed % 3 == 1:
        spoilt[start : start + 256] = bytes(len(spoilt[start : start + 256]))
    else:
        del spoilt[start : start + 2000]
    return bytes(spoilt)


def verdict(data: bytes, *, full: bool) -> str:
    try:
        if full:
            decode(data, max_pixels=10**8)
        else:
            examine(data, max_pixels=10**8, min_size=1)
    except ImageError as error:
        return error.status
    return "ok"


def test_damage_shows_as_it_would_at_full_size() -> None:
    """The reduced decoding of ``examine`` refuses what a full decoding refuses."""
    data = image(5, (640, 480))
    progressive = encoded(Image.open(io.BytesIO(data)), "JPEG", progressive=True)
    for whole in (data, progressive):
        for tenth in range(1, 10):
            cut = whole[: len(whole) * tenth // 10]
            with pytest.raises(ImageError):
                decode(cut, max_pixels=10**8)
            with pytest.raises(ImageError):
                examine(cut, max_pixels=10**8, min_size=1)
        assert [verdict(spoil(whole, seed), full=False) for seed in range(40)] == [
            verdict(spoil(whole, seed), full=True) for seed in range(40)
        ]
        found = examine(whole, max_pixels=10**8, min_size=1)
        assert (found.width, found.height, found.extension, found.size) == (640, 480, "jpg", len(whole))


def test_hashes_tell_rows_from_columns_of_the_upright_image() -> None:
    def hashes(image: Image.Image, orientation: int = 1) -> tuple[int, int, int]:
        found = hash_image(Decoded(np.asarray(image.convert("RGB")), *image.size, orientation))
        return found.rows, found.columns, found.coarse

    image = Image.linear_gradient("L")  # brighter downwards
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert hashes(image) == (0, 2**64 - 1, 2**12 - 1)
    assert hashes(turned) == hashes(image, 8) == (2**64 - 1, 0, (2**12 - 1) << 12)
    assert hashes(image, 3) == (0, 0, 0), "upside down it grows darker"


def test_the_store_survives_half_written_images(tmp_path: Path) -> None:
    data = image(1)
    found = examine(data, max_pixels=10**8, min_size=1)
    store = WebStore(tmp_path, limits="a")
    store.path(found.sha256).parent.mkdir(parents=True)
    store.path(found.sha256).write_bytes(data[:100])  # what a kill left
    assert not store.has(found.sha256)
    store.path(found.sha256).write_bytes(data[:100])
    store.write(found.sha256, data)
    store.write(found.sha256, data)
    assert store.has(found.sha256)
    store.place(found.sha256, tmp_path / "placed.jpg")
    assert (tmp_path / "placed.jpg").read_bytes() == data
    store.close()


def test_the_store_remembers_outcomes_until_they_may_differ(tmp_path: Path) -> None:
    def candidate(name: str) -> Candidate:
        return Candidate(class_name="cat", source="s", url=name)

    found = examine(image(1), max_pixels=10**8, min_size=1)
    store = WebStore(tmp_path, limits="a")
    outcomes = {
        "ok": CandidateOutcome(candidate=candidate("ok"), image=found),
        "gone": CandidateOutcome(candidate=candidate("gone"), status="http_404", reason="r"),
        "late": CandidateOutcome(candidate=candidate("late"), status="timeout", reason="r"),
        "small": CandidateOutcome(candidate=candidate("small"), status="too_small", reason="r"),
    }
    for name, outcome in outcomes.items():
        store.record(name, image=outcome.image, status=outcome.status, reason=outcome.reason, transient=name == "late")
    assert all(store.recall(o.candidate, retry_transient=False) == o for o in outcomes.values())
    assert store.recall(candidate("late"), retry_transient=True) is None
    assert store.recall(candidate("new"), retry_transient=False) is None
    store.close()
    other = WebStore(tmp_path, limits="b")
    assert other.recall(candidate("small"), retry_transient=False) is None
    assert other.recall(candidate("ok"), retry_transient=True) == outcomes["ok"]
    other.close()


PASSING: tuple[str, ...] = (
    "timeout",
    "dns",
    "connection",
    "tls",
    "robots",
    "refused_address",
    "truncated",
    "protocol",
    "redirect",
)
PASSING += tuple(f"http_{status}" for status in (401, 403, 408, 425, 429, 500, 502, 503, 504))
CANDIDATE = Candidate(class_name="cat", source="s", url="u")


@pytest.mark.parametrize("status", PASSING)
def test_what_may_pass_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    store = WebStore(tmp_path, limits="a", access="x")
    store.record("u", status=status, reason="r")
    assert store.recall(CANDIDATE, retry_transient=False) is not None, "not at once"
    assert store.recall(CANDIDATE, retry_transient=True) is None, "on refresh"
    now = time.time()
    for later in (3601, 10**8, -100):
        monkeypatch.setattr("objrec.ingest.store.time.time", lambda later=later: now + later)
        assert store.recall(CANDIDATE, retry_transient=False) is None, "after a while, and when the clock was set"
    monkeypatch.undo()
    store.close()
    other = WebStore(tmp_path, limits="a", access="y")
    assert other.recall(CANDIDATE, retry_transient=False) is None, "under other settings"
    other.close()


@pytest.mark.parametrize("status", ["http_404", "http_410", "corrupt", "unsupported", "too_small"])
def test_what_lasts_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    store = WebStore(tmp_path, limits="a", access="x")
    store.record("u", status=status, reason="r")
    monkeypatch.setattr("objrec.ingest.store.time.time", lambda: 10**10)
    assert store.recall(CANDIDATE, retry_transient=True) is not None
    store.record("u", status=status, reason="a decoder died", transient=True)
    assert store.recall(CANDIDATE, retry_transient=True) is None
    store.close()


def test_outcomes_of_an_earlier_version(tmp_path: Path) -> None:
    """It wrote the limits with every status, and a flag for what may pass."""
    store = WebStore(tmp_path, limits="a", access="x")
    rows = (("404", "http_404", 0), ("dns", "dns", 0), ("late", "timeout", 1), ("robots", "robots", 0))
    for url, status, flag in rows:
        values = (url, status, "r", flag, "1/2/3", *(None,) * 7)
        store._execute("insert into outcomes values (?,?,?,?,?,?,?,?,?,?,?,?)", values)
    known = {url for url, *_ in rows if store.recall(replace(CANDIDATE, url=url), retry_transient=False)}
    assert known == {"404"}
    store.close()


def test_the_yield_table_adds_up() -> None:
    table = yield_table({"cat": {"kept": 3, "http_404": 2}, "a long name": {"kept": 1}}, 3)
    assert [line.split() for line in table.splitlines()] == [
        ["class", "asked", "found", "kept", "http_404"],
        ["cat", "3", "5", "3", "2"],
        ["a", "long", "name", "3", "1", "1"],
        ["all", "6", "6", "4", "2"],
    ]


def imported(script: str) -> set[str]:
    """The modules that a fresh interpreter has after ``script``."""
    script += "\nimport sys; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_sources_and_ingest_import_no_torch_and_nothing_of_the_network_without_need() -> None:
    script = """
import pkgutil, importlib
import objrec.sources, objrec.ingest
for package in (objrec.sources, objrec.ingest):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""
    assert imported(script) & {"torch", "torchvision", "lightning", "matplotlib", "pyarrow"} == set()
    assert imported("import objrec.steps.ingest") & {"aiohttp", "numpy", "PIL", "hydra"} == set()
