"""A decoder that ends its process costs one image of the data set."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers.gradients import image

from objrec.config.load import load_config
from objrec.preprocess import dataset
from objrec.preprocess.crop import Crop, crop_numbered
from objrec.steps.base import restrict
from objrec.steps.preprocess import STEP
from objrec.system.pool import Alone


def crash_on(job: tuple[int, str], alone: Alone, **options: Any) -> Crop:
    if Path(job[1]).name == "7.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return crop_numbered(job, alone, **options)


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
