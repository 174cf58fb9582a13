"""What tests of training share: a tiny data set, and a training in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.models.card import ModelCard
from objrec.steps.base import restrict
from objrec.steps.train import STEP

# fp32: what a test says must not depend on the processor
TINY = ["backbone.name=test_resnet", "preprocess.image_size=32", "train.batch_size=8", "compute=cpu"]
TINY += ["compute.precision=32"]
FLAGS = pytest.mark.filterwarnings  # what libraries say to developers
QUIET = [
    FLAGS("ignore:.*treespec.*:Warning"),
    FLAGS("ignore::DeprecationWarning"),
    FLAGS("ignore::FutureWarning"),
    FLAGS("ignore:.*does not have many workers.*"),
    FLAGS("ignore:.*lr_scheduler.step.*"),
    FLAGS("ignore:.*Checkpoint directory.*"),
    FLAGS("ignore:.*without type information.*"),
    FLAGS("ignore:.*in eval mode at the start of training.*"),
    FLAGS("ignore:.*dataloader is not resumable.*"),
]


def make_data(root: Path, *, train: int = 20, valid: int = 8) -> Path:
    """Two classes that differ in colour, a little larger than the models want; ``train`` and ``valid`` of each."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("valid", valid)):
        for name, channel in (("blue", 2), ("red", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def run_train_step(config: Config, data: Path, model_dir: Path) -> None:
    """The train step in this process, on one thread: those of a tiny net wait for each other more than they work."""
    import torch

    torch.set_num_threads(1)
    model_dir.mkdir(parents=True, exist_ok=True)
    STEP.run(
        restrict(config, STEP), {"train_dir": data / "train", "valid_dir": data / "valid"}, {"model_dir": model_dir}
    )


def train(data: Path, model_dir: Path, *overrides: str) -> ModelCard:
    run_train_step(load_config([*TINY, *overrides]), data, model_dir)
    return ModelCard.load(model_dir)
