"""The processes that examine images: one that dies, hangs or cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.bad_server import image
from helpers.examiner import setup

import objrec.ingest.pool as pool_module
from objrec.images.decode import ImageError
from objrec.ingest.examiner import Examiner
from objrec.ingest.pool import ExaminerDied, ExaminerPool
from objrec.ingest.store import WebStore
from objrec.sources.base import Candidate

# An examiner whose decoder misbehaves on command, for no image is known that ends the real one.
FAULTY = """
import os, signal, time
from objrec.ingest import examiner
real = examiner.examine
def examine(data, **limits):
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(600)
    if data == b"defect":
        raise KeyError("ours")
    return real(data, **limits)
examiner.examine = examine
examiner.main()
"""


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "faulty"
    script.write_text(FAULTY)
    monkeypatch.setattr(pool_module, "COMMAND", (str(script),))
    return tmp_path


async def statuses(pool: ExaminerPool, images: list[bytes]) -> list[str]:
    """What comes of images that are all handed in at once."""

    async def one(data: bytes) -> str:
        try:
            found = await pool.examine("target", "cat", data)
        except (ImageError, ExaminerDied) as error:
            return str(error)
        return found.sha256

    return await asyncio.gather(*map(one, images))


def test_many_images_in_several_processes(tmp_path: Path) -> None:
    images = [image(i, (300, 200)) if i % 10 else b"junk" for i in range(120)]

    async def go() -> list[str]:
        async with ExaminerPool(setup(tmp_path), most=3) as pool:
            return await statuses(pool, images)

    found = asyncio.run(go())
    assert [f for i, f in enumerate(found) if i % 10] == [
        hashlib.sha256(p).hexdigest() for i, p in enumerate(images) if i % 10
    ]
    assert all(f.startswith("unsupported") for f in found[::10])
    assert {p.read_bytes() for p in (tmp_path / "out/cat").iterdir()} == {p for p in images if p != b"junk"}


@pytest.mark.parametrize("most", [1, 2])
def test_a_process_that_dies_costs_only_its_image(faulty: Path, most: int) -> None:
    images = [image(i) if i not in (5, 6, 20) else b"crash" for i in range(40)]

    async def go() -> list[str]:
        async with ExaminerPool(setup(faulty), most=most) as pool:
            return await statuses(pool, images)

    found = asyncio.run(go())
    assert {i: f for i, f in enumerate(found) if len(f) != 64} == dict.fromkeys(
        (5, 6, 20), "decoding it ended the process: Segmentation fault"
    )


def test_a_image_that_takes_for_ever_is_given_up(faulty: Path) -> None:
    async def go() -> list[str]:
        async with ExaminerPool(setup(faulty), most=1, patience=0.5) as pool:
            return await statuses(pool, [image(1), b"hang", image(2)])

    first, hung, second = asyncio.run(go())
    assert hung == "decoding it took too long"
    assert len(first) == len(second) == 64


def test_a_defect_of_ours_is_no_fault_of_the_image(faulty: Path) -> None:
    async def go() -> None:
        async with ExaminerPool(setup(faulty), most=1) as pool:
            await pool.examine("target", "cat", b"defect")

    with pytest.raises(RuntimeError, match="KeyError: 'ours'"):
        asyncio.run(go())


def test_processes_that_cannot_start_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        async with ExaminerPool(setup(tmp_path), most=2) as pool:
            await pool.examine("target", "cat", image(1))

    monkeypatch.setattr(pool_module, "COMMAND", ("-c", "raise SystemExit(3)"))
    with pytest.raises(RuntimeError, match=r"did not start.*exit 3"):
        asyncio.run(go())
    monkeypatch.setattr(sys, "executable", "/nowhere")
    with pytest.raises(OSError, match="/nowhere"):
        asyncio.run(go())


def test_a_download_is_recorded_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever is there whole after a kill is known."""

    def full(*_: object) -> None:
        raise OSError("no room")

    store = WebStore(tmp_path / "store", limits="a")
    with monkeypatch.context() as patched, pytest.raises(OSError, match="no room"):
        patched.setattr(WebStore, "write", full)
        Examiner(setup(tmp_path)).examine("store", "http://a/1.jpg", image(1))
    candidate = Candidate(class_name="cat", source="s", url="http://a/1.jpg")
    known = store.recall(candidate, retry_transient=False)
    assert known is not None and known.image is not None and not store.has(known.image.sha256)
    store.close()


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = f"""
import asyncio, os, signal
from pathlib import Path
from objrec.ingest.pool import ExaminerPool
from helpers.examiner import setup
async def go():
    async with ExaminerPool(setup(Path({str(tmp_path)!r})), most=1) as pool:
        while not pool._workers:
            await asyncio.sleep(0.01)
        print(pool._workers[0].process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(go())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)

    state = Path(f"/proc/{pid}/cmdline")  # empty when it has ended and nobody has taken note
    deadline = time.monotonic() + 20
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended, at any of these lines
        while state.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
