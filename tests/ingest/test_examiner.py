"""The processes that examine images for an event loop; how they are held is in tests/system/test_pool.py."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_server import image
from helpers.examiner import examiner, faulty
from PIL import Image

import objrec.ingest.examiner as module
from objrec.images.decode import ImageError
from objrec.ingest.examiner import Examiner, ExaminerDied, ExaminerPool
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate


def outcomes(examiner: Examiner, images: list[bytes], *, workers: int = 2, patience: float = 60) -> list[str]:
    """What comes of images that are all handed in at once: a hash or a reason."""

    async def one(pool: ExaminerPool, data: bytes) -> str:
        try:
            found = await pool.examine("target", "cat", data)
        except (ImageError, ExaminerDied) as error:
            return str(error)
        return found.sha256

    async def go(pool: ExaminerPool) -> list[str]:
        try:
            return await asyncio.gather(*(one(pool, data) for data in images))
        finally:
            await pool.close()

    with ExaminerPool(examiner, workers=workers, patience=patience) as pool:
        return asyncio.run(go(pool))


def test_many_images_in_several_processes(tmp_path: Path) -> None:
    images = [image(i, (300, 200)) if i % 10 else b"junk" for i in range(120)]
    found = outcomes(examiner(tmp_path), images, workers=3)
    assert [f for i, f in enumerate(found) if i % 10] == [
        hashlib.sha256(p).hexdigest() for i, p in enumerate(images) if i % 10
    ]
    assert all(f.startswith("unsupported") for f in found[::10])
    assert {p.read_bytes() for p in (tmp_path / "out/cat").iterdir()} == {p for p in images if p != b"junk"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_only_its_image(
    tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    images = [image(i) if i not in (5, 20) else b"crash" for i in range(40)]
    found = outcomes(faulty(tmp_path), images, workers=workers)
    said = "decoding it ended the process (SIGSEGV)"
    assert {i: f for i, f in enumerate(found) if len(f) != 64} == dict.fromkeys((5, 20), said)
    assert capfd.readouterr().err == "", "the trace of an expected crash buries what matters"


def test_an_image_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    first, hung, second = outcomes(faulty(tmp_path), [image(1), b"hang", image(2)], workers=1, patience=0.5)
    assert hung == "decoding it took more than 0.5 s"
    assert len(first) == len(second) == 64


def test_a_defect_of_ours_is_no_fault_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="ours") as caught:
        outcomes(faulty(tmp_path), [b"defect"])
    assert "in __call__" in caught.value.__notes__[0], "with the trace from the process"


def test_an_image_that_never_fits_into_memory_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((2000, 2000, 3), np.uint8)).save(file, "PNG")
    assert len(outcomes(examiner(tmp_path), [file.getvalue()] * 3)[0]) == 64, "one at a time"
    (reason,) = outcomes(examiner(tmp_path, large=2 * 10**7), [file.getvalue()])
    assert "53 MiB of memory, and it may take 19" in reason


def test_local_sources_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 10)

    async def go(pool: ExaminerPool) -> None:
        await pool.room()
        given = [b"hang", b"0" * 20, b"0" * 30]
        tasks = [asyncio.create_task(pool.examine("target", "cat", data)) for data in given]
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await pool.room()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.room()

    with ExaminerPool(faulty(tmp_path), workers=1, patience=5) as pool:
        asyncio.run(go(pool))
        pool._pool.close(grace=0)


def test_a_download_is_recorded_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever is there whole after a kill is known."""

    def full(*_: object) -> None:
        raise OSError("no room")

    store = WebStore(tmp_path / "store", limits="a")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no room"):
        patched.setattr(WebStore, "write", full)
        examiner(tmp_path)(("store", "http://a/1.jpg", image(1)), contextlib.nullcontext)
    candidate = Candidate(class_name="cat", source="s", url="http://a/1.jpg")
    known = store.recall(candidate, retry_transient=False)
    assert known is not None and known.image is not None and not store.has(known.image.sha256)
    store.close()
