"""What the Trainer costs beside a loop written by hand.

    python -m benchmarks.training_overhead [--size 64] [--batch 64] [--steps 12] [--rounds 5]

Each round times three trainings of a ResNet-18 in this process, in turn, on the same random images in memory:
``objrec`` (Trainer, datamodule, metrics, CSV and curves, checkpoints, progress; the epoch's training steps alone are
timed), a loop by hand in the same precision and memory format, and a plain loop in fp32 and channels-first. Prints
images a second and the ratios within rounds, as a Markdown row.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

CLASSES = 10


def write_images(root: Path, count: int, size: int) -> None:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, n in (("train", count), ("valid", 2 * CLASSES)):
        for i in range(n):
            path = root / split / f"class{i % CLASSES}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(path)


def ours(root: Path, *, size: int, batch: int, steps: int) -> float:
    """Return images a second of one epoch's steps under the Trainer, the first two left out."""
    from objrec.config.load import load_config
    from objrec.training import fit as training
    from objrec.training.callbacks.checkpoint import MidEpochCheckpoint

    times: list[float] = []
    original = MidEpochCheckpoint.on_train_batch_end

    def watch(self: Any, *args: Any) -> None:
        original(self, *args)  # the last callback of a step
        times.append(time.perf_counter())

    MidEpochCheckpoint.on_train_batch_end = watch  # type: ignore[method-assign]
    options = [f"preprocess.image_size={size}", f"train.batch_size={batch}", "train.max_epochs=1", "augmentation=none"]
    try:
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            training.fit(
                load_config([*options, "optimizer=sgd", "train.label_smoothing=0.0"]),
                train_dir=root / "train",
                valid_dir=root / "valid",
                model_dir=Path(name),
                calibrate=lambda *_: {},
            )
    finally:
        MidEpochCheckpoint.on_train_batch_end = original  # type: ignore[method-assign]
    assert len(times) == steps
    return batch * (steps - 2) / (times[-1] - times[1])


def by_hand(pixels: Any, targets: Any, *, batch: int, fast: bool) -> float:
    """Return images a second of a plain loop; ``fast``: bf16 where it pays, channels_last, fused optimizer."""
    import timm
    import torch
    import torch.nn.functional as F

    from objrec.config.load import load_config
    from objrec.training.hardware import choose_hardware

    precision = choose_hardware(load_config([]).compute).precision
    model = timm.create_model("resnet18", num_classes=CLASSES).train()
    if fast:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fast)
    mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = 255 * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    order = torch.randperm(len(pixels))
    times = []
    for start in range(0, len(pixels), batch):
        index = order[start : start + batch]
        images = pixels[index].permute(0, 3, 1, 2)
        images = (images if fast else images.contiguous()).float().sub_(mean).div_(std)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast and precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images), targets[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter())
    return batch * (len(times) - 2) / (times[-1] - times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    size, batch, steps = arguments.size, arguments.batch, arguments.steps
    pixels = torch.randint(0, 255, (steps * batch, size, size, 3), dtype=torch.uint8)
    targets = torch.arange(len(pixels)) % CLASSES
    rounds: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), steps * batch, size)
        for _ in range(arguments.rounds):
            rounds.append(
                (
                    ours(Path(name), size=size, batch=batch, steps=steps),
                    by_hand(pixels, targets, batch=batch, fast=True),
                    by_hand(pixels, targets, batch=batch, fast=False),
                )
            )
            print("  ".join(f"{speed:.1f}" for speed in rounds[-1]), flush=True)
    trainer, hand, plain = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = [sorted(r[0] / r[i] for r in rounds) for i in (1, 2)]
    said = " | ".join(f"**{statistics.median(r):.2f}** ({r[0]:.2f} to {r[-1]:.2f})" for r in ratios)
    where = f"{size} px, batch {batch}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    print(f"| {where} | {trainer:.0f} | {hand:.0f} | {plain:.0f} | {said} |")


if __name__ == "__main__":
    main()
