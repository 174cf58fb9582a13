"""Make docs/images/*.png from the last run of the pipeline: the endpoint's page with an answer, and the report.

    make run && .venv/bin/python docs/make_images.py

Needs chromium (apt-get install chromium) and the endpoint that ``make run`` left serving.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "images"
LIMIT = 300_000  # bytes of an image
WIDTH, HEIGHT = 900, 900
sys.path.insert(0, str(ROOT / "tests"))

from helpers.chromium import Page, chromium  # noqa: E402


def main(run_file: str = "runs/pipeline/latest/run.json") -> None:
    run = json.loads(Path(run_file).read_text())
    outputs = {name: Path(path) for step in run["steps"] for name, path in step["outputs"].items()}
    image = outputs["test_dir"] / first_correct(outputs["report_dir"] / "predictions.csv")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.open(run["endpoint_url"], width=WIDTH, height=HEIGHT)
        choose(page, image)
        save(page, OUT / "page.png")
        page.open((outputs["report_dir"] / "report.html").resolve().as_uri(), width=WIDTH, height=HEIGHT)
        save(page, OUT / "report.png")


def first_correct(predictions: Path) -> str:
    """Return the path of the first test image that the model labels correctly."""
    with predictions.open(newline="", encoding="utf-8") as file:
        return next(row["path"] for row in csv.DictReader(file) if row["correct"] in ("1", "true", "True"))


def choose(page: Page, image: Path) -> None:
    """Give the page an image as a person does, and wait for the answer."""
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(image.resolve())])
    for _ in range(200):
        if page.evaluate("/\\d %/.test(document.body.innerText)"):
            break
        time.sleep(0.1)
    time.sleep(1)  # bars move


def save(page: Page, path: Path) -> None:
    """Store the top of the page in 256 colours."""
    page.call("Page.bringToFront")
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
    data = base64.b64decode(page.call("Page.captureScreenshot", clip=clip)["data"])
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LIMIT, f"{path} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main(*sys.argv[1:])
