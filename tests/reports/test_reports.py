"""The three pages: names from outside never become markup, nothing is fetched, the bytes are repeatable."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluation_model import evaluate, write_images, write_model
from PIL import Image

from objrec.config.load import load_config
from objrec.steps.base import restrict

EVIL = "<img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
CLASSES = [EVIL, "plain"]


def evaluation_page(root: Path) -> Path:
    model = write_model(root / "model", CLASSES)
    test = write_images(root / "test", CLASSES)
    (test / EVIL / "000.jpg").rename(test / EVIL / f"{EVIL}.jpg")
    (test / EVIL / f"{EVIL}.png").write_bytes(b"broken")
    train = write_images(root / "train", CLASSES)  # the same images: near-duplicates with these names
    other = write_model(root / "other", CLASSES, seed=9, sharpness=1)
    _, report = evaluate(
        root / "out", "evaluate.slices=true", model_dir=model, test_dir=test, train_dir=train, compare_dir=other
    )
    return report / "report.html"


def ingest_page(root: Path) -> Path:
    from objrec.ingest.report import write_report

    write_images(root, CLASSES, count=3)
    outside = dict.fromkeys(("source", "license", "creator", "title", "url", "reason"), EVIL)
    statuses = ("kept", "kept", "near_duplicate")
    rows = [
        {**outside, "class": c, "status": s, "file": f"{c}/{i:03}.jpg", "landing_page": f"javascript:{EVIL}"}
        for c in CLASSES
        for i, s in enumerate(statuses)
    ]
    with ThreadPoolExecutor(2) as pool:
        write_report(root / "ingest_report.html", rows, CLASSES, 5, [EVIL], pool)
    return root / "ingest_report.html"


def leakage_page(root: Path) -> Path:
    from objrec.steps.preprocess import STEP

    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / "raw" / name).mkdir(parents=True)
        for i in range(12):
            small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            image = small.resize((80, 60), Image.Resampling.BICUBIC)
            image.save(root / "raw" / name / f"{i}.png")
            if i == 3:
                image.save(root / "raw" / name / f"{EVIL}.png")
                image.save(root / "raw" / name / f"{EVIL}.jpg", quality=70)
    outputs = {f"{s}_dir": root / s for s in ("train", "valid", "test")}
    for folder in outputs.values():
        folder.mkdir()
    STEP.run(
        restrict(load_config(["preprocess.exact_split=true"]), STEP), {"raw_data_dir": root / "raw"}, dict(outputs)
    )
    return root / "train" / "leakage.html"


PAGES = {"evaluation": evaluation_page, "ingest": ingest_page, "leakage": leakage_page}


class Markup(HTMLParser):
    """Collects elements, attributes that run code or fetch, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.shown = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            fetched = name in ("src", "href") and not (value or "").startswith(("data:", "#", "https://example.org"))
            if name.startswith("on") or fetched:
                self.bad.append(f"<{tag} {name}={value}>")
            self.shown += f"\n{value}"

    def handle_data(self, data: str) -> None:
        self.shown += data


@pytest.mark.parametrize("kind", PAGES)
def test_names_from_outside_are_text(kind: str, tmp_path: Path) -> None:
    page = PAGES[kind](tmp_path).read_text(encoding="utf-8")
    read = Markup(page)
    assert read.bad == []
    assert EVIL in read.shown  # shown as it is: escaped once, not twice
    assert "<img src=x" not in page and not re.search(r"url\(|@import", page)


@pytest.mark.parametrize("kind", PAGES)
def test_the_same_input_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    first, second = (PAGES[kind](tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second
