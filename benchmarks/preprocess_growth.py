"""How time and memory of the preprocess step grow with the number of small images.

    PYTHONPATH=. python benchmarks/preprocess_growth.py CIFAR.zip [--counts 20000 40000 100000 200000]

``CIFAR.zip`` holds ``<class>/<image>`` of 32 px; turned, mirrored and inverted copies make more, up to 320,000.
The step runs as a process of its own for each count; memory is the peak of the parent, and of the largest worker.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import resource, sys, time
from pathlib import Path
from objrec.config.load import load_config
from objrec.steps.base import restrict
from objrec.steps.preprocess import STEP
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
outputs = {f"{s}_dir": out / s for s in ("train", "valid", "test")}
for folder in outputs.values():
    folder.mkdir(parents=True)
begin = time.perf_counter()
STEP.run(restrict(load_config(["preprocess.image_size=32"]), STEP), {"raw_data_dir": raw}, outputs)
seconds = time.perf_counter() - begin
peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(seconds, *peaks)
"""


def turned(data: bytes, turn: int) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if turn >= 8:
        image = ImageOps.invert(image)
    if turn % 8:
        image = image.transpose(Image.Transpose(turn % 8 - 1))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 40_000, 100_000, 200_000])
    arguments = parser.parse_args()
    print("| images | seconds | microseconds an image | parent, MB | worker, MB |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(arguments.images) as archive:
        names = [n for n in archive.namelist() if n.endswith(".jpg")]
        made = 0
        for count in sorted(arguments.counts):
            for i in range(made, count):
                name, turn = names[i % len(names)], i // len(names)
                target = Path(place) / "raw" / Path(name).parent.name / f"{turn}-{Path(name).name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                data = archive.read(name)
                target.write_bytes(turned(data, turn) if turn else data)
            made = count
            line = [sys.executable, "-c", CHILD, f"{place}/raw", f"{place}/out{count}"]
            done = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds, parent, worker = map(float, done.stdout.split())
            row = f"| {count} | {seconds:.1f} | {seconds / count * 1e6:.0f} | {parent:.0f} | {worker:.0f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
