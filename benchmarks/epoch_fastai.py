"""One epoch beside fastai, from start to finish without imports.

    python -m benchmarks.epoch_fastai --images cifar10-20k.zip --fastai PYTHON [--rounds 1] [--per-class 1400]

Both train a ResNet-18 from random weights for one epoch on the same folders of files at 64 px, batch 64, and validate
it; each round starts both, as processes of their own, in turn. Timed from after the imports to the end: for objrec with
its curves, checkpoints, calibration and the exported model folder; for fastai's ``vision_learner`` to the end of
validation, with the usual augmentation and its defaults but for the sizes. PYTHON is one that can import fastai.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.transfer import write_splits

ROOT = Path(__file__).resolve().parents[1]
OURS = """
import sys, tempfile, time
from pathlib import Path
import lightning, timm
from objrec.config.load import load_config
from objrec.training.fit import fit
from objrec.steps.train import calibrate
from functools import partial
began = time.perf_counter()
config = load_config(["preprocess.image_size=64", "train.batch_size=64", "train.max_epochs=1"])
root = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as out:
    places = {"train_dir": root / "train", "valid_dir": root / "valid", "model_dir": Path(out)}
    card = fit(config, **places, calibrate=partial(calibrate, size=64))
    print("seconds", time.perf_counter() - began, card.metrics["val/acc"])
"""
FASTAI = """
import sys, time
from fastai.vision.all import *
began = time.perf_counter()
data = ImageDataLoaders.from_folder(
    sys.argv[1], train="train", valid="valid", item_tfms=Resize(64), batch_tfms=aug_transforms(), bs=64
)
learner = vision_learner(data, resnet18, pretrained=False, metrics=accuracy)
learner.unfreeze()
with learner.no_bar():
    learner.fit_one_cycle(1, 3e-3)
print("seconds", time.perf_counter() - began, learner.recorder.values[-1][-1])
"""


def timed(python: str, code: str, root: Path) -> tuple[float, float]:
    """Return the seconds that a program says it took, and the accuracy that it reached."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, "-c", code, str(root)], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    words = next(line for line in done.stdout.splitlines() if line.startswith("seconds")).split()
    return float(words[1]), float(words[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--fastai", required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--per-class", type=int, default=1400, help="training images; two sevenths more to validate")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        count = arguments.per_class
        write_splits(arguments.images, root, {"train": count, "valid": count * 2 // 7})
        for _ in range(arguments.rounds):
            ours, theirs = timed(sys.executable, OURS, root), timed(arguments.fastai, FASTAI, root)
            print(
                f"| {10 * count} + {10 * (count * 2 // 7)} | {ours[0]:.1f} s ({100 * ours[1]:.1f} %) "
                f"| {theirs[0]:.1f} s ({100 * theirs[1]:.1f} %) | **{theirs[0] / ours[0]:.2f}** |",
                flush=True,
            )


if __name__ == "__main__":
    main()
