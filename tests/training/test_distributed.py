"""Two processes train as one does on the same global batch.

Batch norm sees each process's own images, so the backbone here has layer norm; augmentation draws for each process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
from helpers.training import QUIET, make_data, train

from objrec.models.card import ModelCard

pytestmark = QUIET
RECIPE = ["backbone.name=test_convnext", "train.max_epochs=2", "augmentation=none", "compute.precision=32"]
RECIPE += ["optimizer=sgd", "train.freeze_epochs=1", "train.ema=0.5", "train.label_smoothing=0.0"]


def run_rank(rank: int, port: int, data: Path, folder: Path, options: list[str]) -> None:
    """One process as a launcher starts it; it inherits the imports of the test."""
    import torch

    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {**where, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    output = os.open(folder / f"rank{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    train(data, folder / "model", *options, "compute.devices=2", "train.batch_size=4")


def train_in_two(data: Path, folder: Path, options: list[str]) -> Path:
    """Train with two processes; returns the model folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(r, port, data, folder, options)) for r in range(2)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
    finally:
        for process in ranks:
            process.kill()
    logs = "".join((folder / f"rank{r}.log").read_text() for r in range(2))
    assert [process.exitcode for process in ranks] == [0, 0], logs
    return folder / "model"


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """With an odd number of validation images: the repeated one, which fills up the last batch, does not count."""
    data = make_data(tmp_path / "data", train=20, valid=8)
    next((data / "valid" / "red").glob("*.png")).unlink()
    train(data, tmp_path / "one", *RECIPE, "train.batch_size=8")
    compare(tmp_path / "one", train_in_two(data, tmp_path, RECIPE))


def test_remainders_of_two_processes_train(tmp_path: Path) -> None:
    """17 images and batch norm: 9 for each process in batches of 4, no batch of one image, the last step half full."""
    data = make_data(tmp_path / "data", train=9, valid=2)
    next((data / "train" / "red").glob("*.png")).unlink()
    model = train_in_two(data, tmp_path, ["train.max_epochs=1", "train.accumulate=2"])
    assert ModelCard.load(model).metrics["epoch"] == 0


def compare(one: Path, two: Path) -> None:
    import csv

    from safetensors.torch import load_file

    expected, found = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name, tensor in expected.items():
        assert found[name].allclose(tensor, rtol=1e-4, atol=1e-5), name
    rows = [
        list(csv.DictReader((folder / "training" / "metrics.csv").read_text().splitlines())) for folder in (one, two)
    ]
    assert len(rows[0]) == len(rows[1]) == 2
    for a, b in zip(*rows, strict=True):
        assert {k: float(v) for k, v in b.items()} == pytest.approx({k: float(v) for k, v in a.items()}, abs=2e-5)
    assert float(rows[0][-1]["val/acc"]) * 15 == pytest.approx(round(float(rows[0][-1]["val/acc"]) * 15), abs=1e-3)
