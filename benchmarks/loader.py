"""How fast are training batches made, beside the loaders that others use? And does the cost grow with the images?

    python benchmarks/loader.py --photos photos.zip [--peers-python PYTHON] [--images 3840] [--rounds 3] [--markdown]
    python benchmarks/loader.py --growth cifar10-20k.zip [--markdown]

Each loader is a process of its own (``loader_peers.py``), all started by this one; they take turns, an epoch each a
round, after a first one that does not count. Memory is the proportional set size of a loader's process with its
workers, the largest seen. ``--peers-python`` is an interpreter that has torchvision, timm, litdata and nvidia-dali.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SIDE = 256  # pixels of the stored images
OURS = ("objrec_store", "objrec_files")
PEERS = ("torchvision_imagefolder", "timm", "litdata", "dali")
NAMES = {
    "objrec_store": "objrec, decoded store",
    "objrec_files": "objrec, JPEG folders",
    "torchvision_imagefolder": "torchvision ImageFolder + DataLoader",
    "timm": "timm loader",
    "litdata": "litdata",
    "dali": "DALI (CPU)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--growth", type=Path)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--imports", nargs="*", default=(), help="modules that every process imports first, as lightning"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="*", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--scratch", type=Path, help="kept for the next time; otherwise a temporary folder")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        if arguments.growth:
            growth(arguments, scratch)
        else:
            compare(arguments, scratch)


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    folder = scratch / f"photos-{arguments.images}"
    if not folder.exists():
        write_photos(arguments.photos, folder, arguments.images)
    loaders = [
        Loader(name, sys.executable if name in OURS else arguments.peers_python, folder, scratch, arguments)
        for name in (*OURS, *arguments.peers)
    ]
    for loader in loaders:  # one after the other: building a store or chunks is no part of what is measured
        loader.wait_until_ready()
    for number in range(arguments.rounds + 1):
        for loader in loaders:
            loader.epoch(counts=number > 0)
    base = next((x for x in loaders if x.name == "torchvision_imagefolder"), loaders[0])
    rows = []
    for loader in loaders:
        ratios = [a / b for a, b in zip(loader.rates, base.rates, strict=True)]
        rows.append(
            (
                NAMES[loader.name],
                f"{statistics.median(loader.rates):.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{loader.first_memory / 1e6:.0f}",
                f"{loader.memory / 1e6:.0f}",
            )
        )
        loader.stop()
    print(f"{arguments.images} images of {SIDE} px, crops of {arguments.size} px, {os.cpu_count()} cores")
    table(("loader", "images/s", "times ImageFolder", "MB, first epoch", "MB, last epoch"), rows, arguments.markdown)


def write_photos(archive: Path, folder: Path, count: int) -> None:
    """Write ``count`` JPEG files of SIDE pixels in ten classes; the photographs take turns."""
    from PIL import Image, ImageOps

    encoded = []
    with zipfile.ZipFile(archive) as photos:
        for name in sorted(photos.namelist()):
            if name.lower().endswith((".jpg", ".jpeg")):
                image = ImageOps.fit(Image.open(io.BytesIO(photos.read(name))).convert("RGB"), (SIDE, SIDE))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=95, subsampling=0)  # as the preprocess step writes them
                encoded.append(buffer.getvalue())
    for i in range(count):
        path = folder / f"class{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded[i % len(encoded)])


class Loader:
    """A loader's process, its rates and its memory."""

    def __init__(self, name: str, python: str, folder: Path, scratch: Path, arguments: argparse.Namespace) -> None:
        self.name = name
        self.rates: list[float] = []
        self.first_memory = self.memory = 0
        command = [python, HERE / "loader_peers.py", name, folder, scratch, arguments.size, arguments.workers]
        command += arguments.imports
        self._process = subprocess.Popen(
            [str(c) for c in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._pipes: tuple[Any, Any] = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        for line in self._pipes[1]:
            if line == "ready\n":
                return
        raise SystemExit(f"{self.name} did not start")

    def epoch(self, *, counts: bool) -> None:
        seen, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.3):
                seen.append(tree_memory(self._process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        self._pipes[0].write("go\n")
        self._pipes[0].flush()
        images, seconds = next(line for line in self._pipes[1] if line[0].isdigit()).split()
        done.set()
        watcher.join()
        if counts:
            self.rates.append(int(images) / float(seconds))
            self.memory = max(seen)
            self.first_memory = self.first_memory or self.memory

    def stop(self) -> None:
        self._pipes[0].close()
        self._process.wait(30)


def tree_memory(pid: int) -> int:
    """Proportional set size of a process and those it started, bytes."""
    total, waiting = 0, [pid]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        try:
            rollup = (process / "smaps_rollup").read_text()
            total += 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has just ended
    return total


def growth(arguments: argparse.Namespace, scratch: Path) -> None:
    """Start, load an epoch, start again with everything cached, for more and more images."""
    with zipfile.ZipFile(arguments.growth) as archive:
        archive.extractall(scratch / "once")
    originals = sorted((scratch / "once").rglob("*.jpg"))
    rows = []
    for count in arguments.counts:
        folder, cache = scratch / f"grown-{count}", scratch / f"cache-{count}"
        for i in range(count):
            original = originals[i % len(originals)]
            path = folder / original.parent.name / f"{i:06d}.jpg"
            if i < len(originals):
                path.parent.mkdir(parents=True, exist_ok=True)
            os.link(original, path)
        first, again = (grown(folder, cache) for _ in range(2))
        size = sum(f.stat().st_size for f in cache.rglob("pixels.u8"))
        rows.append(
            (
                f"{count:,}",
                f"{first['start']:.1f}",
                f"{1e6 * first['start'] / count:.0f}",
                f"{again['start']:.2f}",
                f"{again['rate']:.0f}",
                f"{first['memory'] / 1e6:.0f}",
                f"{again['memory'] / 1e6:.0f}",
                f"{size / 1e6:.0f}",
            )
        )
        shutil.rmtree(folder)
        shutil.rmtree(cache)
    head = (
        "images",
        "first start, s",
        "µs an image",
        "cached start, s",
        "images/s",
        "MB first",
        "MB cached",
        "MB store",
    )
    table(head, rows, arguments.markdown)


def grown(folder: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, str(HERE / "loader_growth.py"), str(folder), str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    most = 0
    while process.poll() is None:
        most = max(most, tree_memory(process.pid))
        time.sleep(0.1)
    assert process.stdout is not None
    start, rate = map(float, process.stdout.read().split())
    return {"start": start, "rate": rate, "memory": most}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], markdown: bool) -> None:
    if markdown:
        for row in (head, ("---",) * len(head), *rows):
            print("| " + " | ".join(row) + " |")
    else:
        for row in (head, *rows):
            print("".join(cell.ljust(40 if i == 0 else 26) for i, cell in enumerate(row)))


if __name__ == "__main__":
    main()
