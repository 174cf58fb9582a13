"""How the cost of finding duplicates grows with the number of images.

    PYTHONPATH=. python benchmarks/dedup_growth.py [--most 200000]

Every image is compared with all that came before it, as ingest does: exact by sha256, near by perceptual hash. One in
ten is a near-duplicate of an earlier one (some bits of 128 flipped). The hashes come from random cell brightnesses with
neighbours that resemble each other, as in photographs. ``per image / log2 n`` would be flat for n log n; comparing
all pairs would double the cost of an image with each line. Run from the root of the checkout.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import math
import resource
import time

import numpy as np
from PIL import Image

from objrec.images.decode import Decoded
from objrec.images.hashing import hash_image
from objrec.ingest.examine import ExaminedImage
from objrec.ingest.selection import CandidateOutcome, CandidateSelection
from objrec.sources.base import Candidate


def make_outcomes(count: int, seed: int) -> list[CandidateOutcome]:
    rng = np.random.default_rng(seed)
    outcomes: list[CandidateOutcome] = []
    codes: list[tuple[int, int]] = []
    for i in range(count):
        if i and rng.random() < 0.1:
            rows, columns = codes[int(rng.integers(len(codes)))]
            for bit in rng.integers(0, 64, size=int(rng.integers(0, 4))).tolist():
                rows, columns = rows ^ 1 << bit, columns ^ 1 << bit
        else:
            coarse = rng.integers(0, 255, (5, 5), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((36, 36), Image.Resampling.BICUBIC), dtype=np.float64)
            cells = (smooth + rng.normal(0, 12, (36, 36))).clip(0, 255).astype(np.uint8)
            colours = np.repeat(cells[:, :, None], 3, axis=2)
            hashes = hash_image(Decoded(colours, 36, 36, 1))
            rows, columns = hashes.rows, hashes.columns
        codes.append((rows, columns))
        sha256 = hashlib.sha256(str(i).encode()).hexdigest()
        image = ExaminedImage(
            sha256=sha256, size=1, width=64, height=64, extension="jpg", rows=rows, columns=columns
        )  # fmt: skip
        candidate = Candidate(class_name=f"class{i % 10}", source="bench", url=f"bench:{i}")
        outcomes.append(CandidateOutcome(candidate=candidate, image=image))
    return outcomes


def measure(outcomes: list[CandidateOutcome]) -> tuple[float, int]:
    """CPU seconds to select from ``outcomes``, and how many duplicates were found."""
    selection = CandidateSelection([f"class{i}" for i in range(10)], len(outcomes), distance=6)
    started = time.process_time()
    for outcome in outcomes:
        selection.add(outcome)
    spent = time.process_time() - started
    return spent, len(outcomes) - sum(selection.kept(f"class{i}") for i in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000)
    most = parser.parse_args().most
    outcomes = make_outcomes(most, seed=0)
    gc.freeze()  # or the collector would search all of them for garbage while the first few are compared
    print("| images | CPU seconds | microseconds an image | per image / log2 n | not kept | peak memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in [most >> k for k in range(6, -1, -1)]:
        spent, dropped = min(measure(outcomes[:count]) for _ in range(2))
        each = spent / count * 1e6
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {count} | {spent:.2f} | {each:.1f} | {each / math.log2(count):.2f} | {dropped} | {memory:.0f} |")


if __name__ == "__main__":
    main()
