"""Workers that die, hang or fail cost the file that they were on, and no other."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.gradients import image

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.preprocess import dataset
from objrec.preprocess.crop import Crop, crop_numbered
from objrec.preprocess.pool import FilePool, Lost
from objrec.steps.base import restrict
from objrec.steps.preprocess import STEP

PATHS = [str(i) for i in range(200)]


def misbehave(index: int, path: str, *, how: Callable[[], None], where: tuple[int, ...]) -> int:
    if index in where:
        how()
    return index * 2


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
    pool = FilePool(partial(misbehave, how=how, where=where), PATHS, workers=workers, timeout=timeout)
    results = list(pool.results())
    assert len(results) == len(PATHS), "each file is answered once"
    return dict(results)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("how", "said"), [(kill, "SIGKILL"), (abort, "exit code 7"), (segfault, "SIGSEGV")])
def test_a_death_costs_one_file(how: Callable[[], None], said: str, workers: int) -> None:
    where = (0, 57, 58, 199)
    found = run(how, where, workers=workers)
    for index, result in found.items():
        if index in where:
            assert isinstance(result, Lost) and result.reason.startswith("crashed") and said in result.reason
        else:
            assert result == index * 2


def test_a_hang_costs_one_file_and_stalls_no_other() -> None:
    begin, seconds = time.monotonic(), {}
    pool = FilePool(partial(misbehave, how=hang, where=(3,)), PATHS, workers=2, timeout=2)
    found = {}
    for index, result in pool.results():
        found[index], seconds[index] = result, time.monotonic() - begin
    assert found.pop(3) == Lost("timeout: not decoded within 2 s")
    assert found == {i: i * 2 for i in range(200) if i != 3}
    assert sorted(seconds.values())[100] < 1.5, "the others did not wait"


def test_a_worker_that_others_killed_is_forgiven(tmp_path: Path) -> None:
    flag = tmp_path / "killed"

    def once() -> None:
        if not flag.exists():
            flag.touch()
            kill()

    assert run(once, (20,)) == {i: i * 2 for i in range(200)}


def test_a_full_disk_ends_it_with_its_own_error() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(full, (50,))


def test_when_every_worker_dies_it_says_so() -> None:
    with pytest.raises(UserError, match="enough memory"):
        run(kill, tuple(range(200)))


def crash_on(index: int, name: str, **options: Any) -> Crop:
    if Path(name).name == "7.png":
        kill()
    return crop_numbered(index, name, **options)


def test_a_decoder_crash_costs_its_file_and_the_manifest_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, base in (("cat", 0), ("dog", 100)):
        (tmp_path / "raw" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "raw" / name / f"{i}.png").write_bytes(image(base + i))
    monkeypatch.setattr(dataset, "crop_numbered", crash_on)
    outputs = {f"{s}_dir": tmp_path / s for s in ("train", "valid", "test")}
    for folder in outputs.values():
        folder.mkdir()
    config = load_config(["preprocess.exact_split=true", "preprocess.workers=2"])
    STEP.run(restrict(config, STEP), {"raw_data_dir": tmp_path / "raw"}, outputs)
    summaries = [json.loads((folder / "split.json").read_text()) for folder in outputs.values()]
    assert sum(sum(s["counts"].values()) for s in summaries) == 38
    for summary in summaries:
        reason = "crashed: decoding it ended the process (SIGKILL)"
        assert summary["left_out"] == [{"class": n, "file": "7.png", "reason": reason} for n in ("cat", "dog")]
    assert not list((tmp_path / "train").glob(".*")), "no scratch is left"
