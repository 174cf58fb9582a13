"""What trained weights are worth with few images.

    python -m benchmarks.transfer --images cifar10-20k.zip --weights lite0.safetensors [--only NAME]

Trains on the same 100 images of each class (20 more choose the epoch) and tests on 150 others of each: once with
``experiment=finetune`` from the weights, then from random weights, with the same backbone at half the size (CIFAR-10
has no more to show) and with a ResNet-18 whose stem suits small images, both over three times as many epochs. Prints
rows for docs/benchmarks-train.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ["train.freeze_epochs=0", "train.freeze_batch_norm=false", "train.layer_decay=null", "train.max_epochs=30"]
SCRATCH += ["train.learning_rate=0.001", "backbone.pretrained=false"]


def write_splits(archive: Path, root: Path, counts: dict[str, int]) -> None:
    """Take the first images of each class for train, the next for valid, and so on."""
    with zipfile.ZipFile(archive) as file:
        by_class: dict[str, list[str]] = {}
        for name in sorted(n for n in file.namelist() if n.endswith((".jpg", ".png"))):
            by_class.setdefault(Path(name).parent.name, []).append(name)
        for names in by_class.values():
            rest = iter(names)
            for split, count in counts.items():
                for _ in range(count):
                    name = next(rest)
                    path = root / split / Path(name).parent.name / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.read(name))


def accuracy(model_dir: Path, test_dir: Path) -> tuple[float, int]:
    from objrec.inference.predictor import Predictor

    predictor = Predictor.load(model_dir)
    files = sorted(test_dir.glob("*/*"))
    right = sum(predictor.predict([path])[0][0][0] == path.parent.name for path in files)
    return right / len(files), len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="for every run")
    arguments = parser.parse_args()
    small = ["backbone=resnet18", "backbone.small_input=true", "preprocess.image_size=32", "augmentation=shift"]
    runs = {
        "finetuned": [f"backbone.weights={arguments.weights.resolve()}", "backbone.pretrained=false"],
        "scratch, at 64 px": [*SCRATCH, "preprocess.image_size=64"],
        "scratch, ResNet-18 at 32 px": [*SCRATCH, *small],
    }
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_splits(arguments.images, root, {"train": arguments.train, "valid": 20, "test": arguments.test})
        for label, overrides in runs.items():
            if arguments.only not in (None, label):
                continue
            for seed in range(arguments.seeds):
                model = root / f"{label}{seed}"
                ports = [f"train_dir={root / 'train'}", f"valid_dir={root / 'valid'}", f"model_dir={model}"]
                command = [sys.executable, "-m", "objrec.steps.train", *ports, "experiment=finetune", *overrides]
                began = time.monotonic()
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
                subprocess.run([*command, f"seed={seed}", *arguments.overrides], env=env, check=True)
                seconds = time.monotonic() - began
                score, count = accuracy(model, root / "test")
                print(f"| {label} | {seed} | {100 * score:.1f} % of {count} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
