"""How much longer does an evaluation take than the bare forward passes with decoding?

    python benchmarks/evaluate.py [--images 2000] [--size 64] [--rounds 3] [--markdown]

Both sides are processes of their own, started in turn, measured by the clock and by the processor seconds that they use
(which say more where other programs are running): ``python -m objrec.evaluate`` with its whole report, and a loop
that decodes each image with the same preprocessing and runs the same ONNX model on batches of the same size.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from objrec.models.card import ModelCard
model, test = map(Path, sys.argv[1:])
preprocessing = ModelCard.load(model).preprocessing
session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
files = sorted(test.rglob("*.jpg"))
right = 0
for start in range(0, len(files), 64):
    pixels = np.stack([preprocessing.pixels(f, max_pixels=10**8) for f in files[start:start + 64]])
    right += len(session.run(None, {"input": preprocessing.normalize(pixels)})[0].argmax(axis=1))
assert right == len(files)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true", help="print a row for docs/benchmarks-evaluate.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model, test = prepare(Path(place), images=arguments.images, size=arguments.size)
        rounds = [
            (
                timed("-m", "objrec.evaluate", f"model_dir={model}", f"test_dir={test}", cwd=place),
                timed("-c", BARE, str(model), str(test), cwd=place),
            )
            for _ in range(arguments.rounds)
        ]
    what = f"{arguments.images} images, {arguments.size} px, resnet18, {os.cpu_count()} cores"
    for i, unit in enumerate(("s", "processor s")):
        ours, bare = ([side[i] for side in sides] for sides in zip(*rounds, strict=True))
        ratios = [a / b for a, b in zip(ours, bare, strict=True)]
        a, b, ratio = statistics.median(ours), statistics.median(bare), statistics.median(ratios)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        if arguments.markdown:
            print(f"| {what} | {a:.2f} {unit} | {b:.2f} {unit} | **{ratio:.2f}** | {spread} |")
        else:
            print(f"{what}: evaluate {a:.2f} {unit}, bare {b:.2f} {unit}, ratio {ratio:.2f} ({spread})")


def prepare(place: Path, *, images: int, size: int) -> tuple[Path, Path]:
    """Write a model folder with random weights and a test folder of ten classes."""
    import torch
    from PIL import Image

    from objrec.evaluation.unknown import outlier_pixels
    from objrec.models.backbones import build_backbone
    from objrec.models.folder import save_model_folder

    classes = [f"class{i}" for i in range(10)]
    for i, pixels in enumerate(outlier_pixels(size, images)):
        folder = place / "test" / classes[i % 10]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:05}.jpg", quality=95)
    torch.manual_seed(0)
    backbone = {"name": "resnet18", "small_input": False, "drop_rate": 0.0}
    save_model_folder(
        place / "model",
        build_backbone(**backbone, num_classes=10, image_size=size).eval(),
        images=torch.rand(4, 3, size, size),
        config={},
        backbone=backbone,
        class_names=classes,
        input_size=size,
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        interpolation="bicubic",
        training_data_fingerprint="0" * 64,
        metrics={},
    )
    return place / "model", place / "test"


def timed(*arguments: str, cwd: str) -> tuple[float, float]:
    """Return the seconds that a Python process takes, and the processor seconds that it uses."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
