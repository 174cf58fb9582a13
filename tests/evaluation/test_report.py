"""``report.html`` in a real browser, on a phone and on a desktop."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.chromium import Page, chromium
from helpers.evaluation_model import COLOURS, evaluate, write_images, write_model

MANY = [f"class number {i}" for i in range(100)]
HISTORY = "epoch,lr,train/loss,train/acc,val/loss,val/acc\n0,0.1,2.1,0.3,1.9,0.35\n1,0.1,1.5,0.5,1.6,0.45\n"


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of four classes with every section."""
    root = tmp_path_factory.mktemp("rich")
    rule = {"score": "max_probability", "threshold": 0.45, "keep": 0.95, "auroc": 0.9, "num_images": 100}
    model = write_model(root / "model", sorted(COLOURS), unknown=rule)
    (model / "training").mkdir()
    (model / "training" / "metrics.csv").write_text(HISTORY)
    (model / "config.yaml").write_text("train:\n  max_epochs: 2\n" + "# a long line " * 40)
    test = write_images(root / "test", sorted(COLOURS), count=20)
    (test / "red" / ("a_very_long_name_" * 8 + ".jpg")).write_bytes(b"broken")
    _, report = evaluate(
        root / "out",
        "evaluate.slices=true",
        "evaluate.robustness=true",
        model_dir=model,
        test_dir=test,
        train_dir=write_images(root / "train", sorted(COLOURS), count=5, seed=4),
        compare_dir=write_model(root / "other", sorted(COLOURS), seed=9, sharpness=1),
        unknown_dir=write_images(root / "outside", ["grey"], count=8, seed=3),
    )
    return report / "report.html"


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a hundred classes."""
    root = tmp_path_factory.mktemp("hundred")
    test = write_images(root / "test", MANY, count=3, noise=90)
    _, report = evaluate(root / "out", model_dir=write_model(root / "model", MANY), test_dir=test)
    return report / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_a_hundred_classes_stay_small(hundred: Path) -> None:
    assert hundred.stat().st_size < 5_000_000


def test_nothing_is_fetched(rich: Path) -> None:
    text = rich.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "@import" not in text and "url(" not in text


def test_every_section_is_there(rich: Path) -> None:
    found = re.findall(r'<section id="(\w+)">', rich.read_text())
    assert found == [
        "problems",
        "compare",
        "confusion",
        "classes",
        "mistakes",
        "uncertain",
        "labels",
        "calibration",
        "training",
        "unknown",
        "slices",
        "robustness",
        "leakage",
        "data",
        "reproduce",
    ]


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("report", ["rich", "hundred"])
def test_in_a_browser(page: Page, request: pytest.FixtureRequest, report: str, width: int, dark: bool) -> None:
    path: Path = request.getfixturevalue(report)
    page.requests.clear()
    page.open(path.as_uri(), width=width, dark=dark)
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre')
        && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []
    images = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(images) >= 24 and all(images)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark
    page.evaluate("document.querySelector('svg.matrix rect.right').dispatchEvent(new Event('click', {bubbles: true}))")
    assert "→" in page.evaluate("document.getElementById('said').textContent")
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg.matrix text')].map(t => t.getBoundingClientRect())"
        ".map(b => Math.min(b.width, b.height)).filter(x => x > 0))"
    )
    assert smallest >= 8  # pixels: a name in the matrix can be read


@pytest.mark.browser
def test_heat_maps_can_be_switched_off(page: Page, rich: Path) -> None:
    page.open(rich.as_uri(), width=1440)
    shown = "[...document.querySelectorAll('#mistakes img.heat')].map(i => i.getClientRects().length > 0)"
    assert all(page.evaluate(shown))
    page.evaluate("document.querySelector('#mistakes .toggle').click()")
    assert page.evaluate(shown) and not any(page.evaluate(shown))
