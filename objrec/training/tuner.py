"""Measurements before a training: which batch size fits and is fast, which learning rate suits."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.training.build import StepSize, make_classifier
from objrec.training.classifier import Classifier
from objrec.training.hardware import Hardware, is_out_of_memory
from objrec.training.resume import Checkpoints

SMALLEST, LARGEST = 8, 4096
STEPS_AN_EPOCH = 10  # at least: larger batches learn nothing from a small data set
GPU_SHARE = 0.8  # of its memory; the rest is for validation and fragments
NEARLY_BEST = 0.95  # of the highest speed on a CPU: the smallest batch that reaches it is taken


def tune(config: Config, hardware: Hardware, data: ImageFolderDataModule, checkpoints: Checkpoints) -> StepSize:
    """Return batch size and learning rate, measured where asked to, and set the batch size of ``data``.

    A resumed training keeps what was measured before.

    Raises:
        UserError: several processes would each find something else.
    """
    found = checkpoints.found
    if config.train.batch_size == "auto":
        _require_one_process("train.batch_size=auto", config)
        if "batch_size" not in found:
            size = find_batch_size(
                lambda: make_classifier(config, data, StepSize(1, config.train.learning_rate)),
                hardware,
                image_size=config.preprocess.image_size,
                images=len(data.train_targets),
                memory=config.train.memory_limit,
            )
            checkpoints.remember(found := {**found, "batch_size": size})
        print(f"train.batch_size=auto: {found['batch_size']}", flush=True)
    steps = StepSize(int(found.get("batch_size", config.train.batch_size)), config.train.learning_rate)
    data.batch_size = steps.batch_size
    if config.train.find_lr:
        _require_one_process("train.find_lr=true", config)
        if "learning_rate" not in found:
            L.seed_everything(config.seed, workers=True, verbose=False)
            image = checkpoints.folder.parent / "lr_finder.png"
            rate = find_learning_rate(make_classifier(config, data, steps), data, hardware, image)
            checkpoints.remember(found := {**found, "learning_rate": rate})
        steps = replace(steps, learning_rate=found["learning_rate"])
        print(f"train.find_lr=true: {steps.learning_rate:g}, see training/lr_finder.png", flush=True)
    return steps


def _require_one_process(setting: str, config: Config) -> None:
    devices, compute = config.compute.devices, config.compute
    several_gpus = compute.accelerator != "cpu" and devices in ("auto", -1) and torch.cuda.device_count() > 1
    listed = len(devices) > 1 if isinstance(devices, list) else devices not in ("auto", -1, 1)
    if compute.num_nodes > 1 or listed or several_gpus or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{setting} measures in one process: find the value with compute.devices=1, then set it")


def find_batch_size(
    build: Callable[[], Classifier], hardware: Hardware, *, image_size: int, images: int, memory: int | None
) -> int:
    """Return a power of two: on a GPU the largest that fits with a margin, on a CPU the fastest within reason.

    Args:
        build: makes the module with fresh weights.
        memory: bytes that training steps may take on a CPU; None: half of what is free.

    Raises:
        UserError: not even the smallest fits.
    """
    largest = max(SMALLEST, min(LARGEST, 2 ** int(math.log2(max(1, images / STEPS_AN_EPOCH)))))
    sizes = [2**n for n in range(int(math.log2(SMALLEST)), int(math.log2(largest)) + 1)]
    module = build().to(hardware.device)
    step = _Step(module, hardware, image_size)
    fits: dict[int, float] = {}  # batch size -> images a second
    limit = memory if memory is not None else _free_memory() // 2
    for size in sizes:
        try:
            speed, used = step.measure(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        on_gpu = hardware.accelerator == "gpu"
        if used > (GPU_SHARE * torch.cuda.get_device_properties(0).total_memory if on_gpu else limit):
            break
        fits[size] = speed
        slower = not on_gpu and speed < 0.8 * max(fits.values())
        if slower or (not on_gpu and 2 * used > limit):
            break
    if not fits:
        raise UserError(f"train.batch_size=auto: not even {SMALLEST} images of {image_size} px fit into memory")
    if hardware.accelerator == "gpu":
        return max(fits)
    return min(size for size, speed in fits.items() if speed >= NEARLY_BEST * max(fits.values()))


class _Step:
    """Training steps on noise."""

    def __init__(self, module: Classifier, hardware: Hardware, image_size: int) -> None:
        self.module, self.hardware, self.image_size = module, hardware, image_size
        self.optimizer = module.make_optimizer()
        self._floor = _resident()

    def measure(self, size: int) -> tuple[float, int]:
        """Return images a second and the bytes that steps of this size take."""
        device = self.hardware.device
        images = torch.randn(size, 3, self.image_size, self.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(size, dtype=torch.int64, device=device)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self._run(images, targets)
        best = math.inf
        for _ in range(2):
            began = time.perf_counter()
            self._run(images, targets)
            if on_gpu:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        used = torch.cuda.max_memory_reserved() if on_gpu else _resident() - self._floor
        return size / best, used

    def _run(self, images: Tensor, targets: Tensor) -> None:
        with self.hardware.autocast():
            loss = self.module.loss(self.module(images), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _resident() -> int:
    """Return the most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def find_learning_rate(
    module: Classifier,
    data: ImageFolderDataModule,
    hardware: Hardware,
    image: Path,
    *,
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
) -> float:
    """Raise the learning rate from batch to batch and return where the loss falls fastest; draws the curve.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017: the range test. The smoothed loss is
    cut where it exceeds four times its minimum; the steepest descent in the logarithm of the rate is taken.

    Args:
        module: with fresh weights; it is used up.
        image: a PNG to write.

    Raises:
        UserError: the loss never fell.
    """
    module.to(hardware.device).train()
    optimizer = module.make_optimizer()
    scales = [group["lr"] / module.optimizer_node["lr"] for group in optimizer.param_groups]
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    for i, (images, targets) in zip(range(steps), _batches(data, hardware.device), strict=False):
        rate = lowest * (highest / lowest) ** (i / (steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        with hardware.autocast():
            loss = module.loss(module(images), targets)
        smooth = 0.9 * smooth + 0.1 * loss.item()
        value = smooth / (1 - 0.9 ** (i + 1))
        if not math.isfinite(value) or (losses and value > 4 * min(losses)):
            break
        rates.append(rate)
        losses.append(value)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    chosen = _steepest(rates, losses)
    if chosen is None:
        raise UserError(
            "train.find_lr=true: the loss fell at no learning rate; check the data, or set train.find_lr=false"
        )
    _draw(rates, losses, chosen, image)
    return chosen


def _batches(data: ImageFolderDataModule, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    data.setup()
    loader = data.train_dataloader()
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            moved = batch._replace(images=batch.images.to(device), targets=batch.targets.to(device))
            yield data.on_after_batch_transfer(moved, 0)


def _steepest(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate of steepest descent, before the minimum, of a curve that begins with 5 untrusted points."""
    end = min(range(len(losses)), key=losses.__getitem__, default=0)
    slopes = {i: losses[i + 1] - losses[i - 1] for i in range(5, end)}
    best = min(slopes, key=slopes.__getitem__, default=None)
    return None if best is None or slopes[best] >= 0 else float(f"{rates[best]:.2g}")


def _draw(rates: list[float], losses: list[float], chosen: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(chosen, linestyle="--", color="tab:red", label=f"chosen: {chosen:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed", title="learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
