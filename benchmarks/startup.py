"""How long commands take to answer: ``python -m benchmarks.startup [--runs N]``.

Prints a Markdown table: median and range of N runs of whole processes, and the time to the first training step beside
``import lightning, timm``, run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

FIRST_STEP = """
import sys, time
import lightning as L
def stop(self, trainer, *unused):
    raise SystemExit(0)
from objrec.training.display.progress import TrainingProgress
TrainingProgress.on_train_batch_end = stop
sys.argv = ["train", *sys.argv[1:]]
from objrec.train import main
main()
"""


def seconds(command: list[str], cwd: Path) -> float:
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    took = time.monotonic() - began
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return took


def row(name: str, figures: list[float]) -> str:
    return f"| {name} | {statistics.median(figures):.2f} | {min(figures):.2f} to {max(figures):.2f} |"


def make_data(folder: Path) -> list[str]:
    for split, count in (("train", 32), ("valid", 8)):
        for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (64, 64), (colour[0], i, colour[2])).save(folder / split / name / f"{i}.png")
    return [f"train_dir={folder / 'train'}", f"valid_dir={folder / 'valid'}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = ["classes.names=[apple,pear]", "ingest.num_images=40", "preprocess.exact_split=true"]
        small += ["backbone.name=test_resnet", "train.max_epochs=1", "deploy.start=false"]
        pipeline = [python, "-m", "objrec.pipeline", *small]
        seconds(pipeline, folder)
        model = next((folder / ".objrec/cache/train").glob("*/model_dir"))
        image = next((folder / ".objrec/cache/preprocess").glob("*/test_dir/*/*.jpg"))
        commands = {
            "objrec.train --help": [python, "-m", "objrec.train", "--help"],
            "objrec.train --cfg job": [python, "-m", "objrec.train", "--cfg", "job"],
            "objrec.pipeline, nothing to do": pipeline,
            "predict IMAGE": [python, "-m", "objrec.predict", str(image), "--model", str(model)],
        }
        print("| command | median, s | range, s |\n| --- | --- | --- |")
        for label, command in commands.items():
            print(row(label, [seconds(command, folder) for _ in range(runs)]), flush=True)
        data = make_data(folder / "data")
        imports, steps = [], []
        for i in range(runs):
            imports.append(seconds([python, "-c", "import lightning, timm"], folder))
            steps.append(seconds([python, "-c", FIRST_STEP, *data, f"run_dir=first{i}"], folder))
        print(row("import lightning, timm", imports))
        print(row("objrec.train to the end of its first step", steps))
        ratios = sorted(a / b for a, b in zip(steps, imports, strict=True))
        print(f"\nfirst step / imports: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
