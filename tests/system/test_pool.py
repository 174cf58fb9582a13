"""Workers that die, hang or fail cost the item that they were on, and no other."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from objrec.config.errors import UserError
from objrec.system.pool import Alone, Failed, Lost, WorkerPool, run_all

COUNT = 200


def misbehave(item: int, alone: Alone, *, how: Callable[[], None], where: tuple[int, ...]) -> int:
    if item in where:
        how()
    return item * 2


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    os._exit(7)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(1000)


def run(
    how: Callable[[], None], where: tuple[int, ...], *, timeout: float = 60, workers: int = 2
) -> dict[int, int | Lost]:
    work = partial(misbehave, how=how, where=where)
    results = list(run_all(work, range(COUNT), workers=workers, timeout=timeout))
    assert len(results) == COUNT, "each item is answered once"
    return dict(results)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("how", "said"), [(kill, "SIGKILL"), (abort, "exit code 7"), (segfault, "SIGSEGV")])
def test_a_death_costs_one_item(
    how: Callable[[], None], said: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    where = (0, 57, 58, 199)
    found = run(how, where, workers=workers)
    for index, result in found.items():
        if index in where:
            assert result == Lost(f"ended the process ({said})")
        else:
            assert result == index * 2
    assert capfd.readouterr() == ("", "")


def test_a_hang_costs_one_item_and_stalls_no_other() -> None:
    begin, seconds = time.monotonic(), {}
    found = {}
    for index, result in run_all(partial(misbehave, how=hang, where=(3,)), range(COUNT), workers=2, timeout=2):
        found[index], seconds[index] = result, time.monotonic() - begin
    assert found.pop(3) == Lost("took more than 2 s", late=True)
    assert found == {i: i * 2 for i in range(COUNT) if i != 3}
    assert sorted(seconds.values())[100] < 1.5, "the others did not wait"


def once(flag: Path) -> None:
    if not flag.exists():
        flag.touch()
        kill()


def test_a_worker_that_others_killed_is_forgiven(tmp_path: Path) -> None:
    assert run(partial(once, tmp_path / "killed"), (20,)) == {i: i * 2 for i in range(COUNT)}


def full() -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_ends_it_with_its_own_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        run(full, (50,))


def test_when_every_worker_dies_it_says_so() -> None:
    with pytest.raises(UserError, match="enough memory"):
        run(kill, tuple(range(COUNT)))


@pytest.mark.parametrize("threads", [False, True])
def test_replacements_beside_other_threads_are_no_forks(threads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those may hold locks. Work that cannot be handed to a new process is an error then, and no hang."""
    count, left = threading.active_count, threading.active_count() - 1  # by tests before this one
    monkeypatch.setattr(threading, "active_count", lambda: count() - left)

    def local(item: int, alone: Alone) -> None:
        kill()

    end = threading.Event()
    with WorkerPool(local, (answers := queue.SimpleQueue()).put, workers=2, timeout=60) as pool:  # type: ignore[var-annotated]
        other = threading.Thread(target=end.wait)
        if threads:
            other.start()
        pool.put_all((i, i, 0) for i in range(3))
        rows = [row for _ in range(1 if threads else 3) for row in answers.get(timeout=60)]
        pool.close(grace=0)
    end.set()
    if threads:
        other.join()
        assert all(isinstance(result, Failed) and "local object" in str(result.error) for _, result in rows)
    else:
        assert dict(rows) == dict.fromkeys(range(3), Lost("ended the process (SIGKILL)"))


def one_at_a_time(item: int, alone: Alone, *, folder: Path) -> bool:
    with alone():
        mine = folder / "inside"
        mine.touch(exist_ok=False)
        time.sleep(0.3)
        if item == 1 and not (folder / "died").exists():
            mine.unlink()
            (folder / "died").touch()
            kill()
        mine.unlink()
    return True


def test_one_worker_at_a_time_is_alone_and_waiting_for_it_takes_no_time(tmp_path: Path) -> None:
    """Also when the one that was alone dies."""
    work = partial(one_at_a_time, folder=tmp_path)
    assert dict(run_all(work, range(6), workers=3, timeout=0.8)) == dict.fromkeys(range(6), True)


def slow(item: int, alone: Alone, *, folder: Path) -> int:
    (folder / f"{item}.begun").touch()
    time.sleep(0.3)
    (folder / f"{item}.done").touch()
    return item


def test_what_was_begun_is_finished_and_nothing_else(tmp_path: Path) -> None:
    answers: queue.SimpleQueue[list[tuple[int, int | Lost | Failed]]] = queue.SimpleQueue()
    pool = WorkerPool(partial(slow, folder=tmp_path), answers.put, workers=2, timeout=60)
    pool.put_all((i, i, 0) for i in range(50))
    pool.drop(49)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    pool.close()
    begun = {p.stem for p in tmp_path.glob("*.begun")}
    assert 0 < len(begun) < 10 and begun == {p.stem for p in tmp_path.glob("*.done")}


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    script = f"""
import os, signal, time
from functools import partial
from pathlib import Path
from objrec.system.pool import WorkerPool
def work(item, alone):
    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
    time.sleep(60)
pool = WorkerPool(work, print, workers=1, timeout=60)
pool.put(0, None)
while not Path({str(tmp_path / "pid")!r}).exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    while not (text := (tmp_path / "pid").read_text()):
        time.sleep(0.01)
    state = Path(f"/proc/{text}/cmdline")  # empty when it has ended and nobody has taken note
    deadline = time.monotonic() + 20
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended, at any of these lines
        while state.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
