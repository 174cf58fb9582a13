"""Training, evaluation and prediction from Python."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.imports import HEAVY
from helpers.serving import make_model
from PIL import Image

from objrec import api
from objrec.config.errors import UserError
from objrec.images.decode import ImageError
from objrec.inference.predictor import Predictor

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_importing_it_is_cheap() -> None:
    code = "import sys\nimport objrec.api\nprint(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "hydra", "pydantic"}


def test_a_mistake_is_told_before_any_work(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"train\.max_epochs"):
        api.train("epochs=3")
    with pytest.raises(UserError, match="is for a sweep"):
        api.train("sweep=grid")
    with pytest.raises(UserError, match="model_dir"):
        api.evaluate("test_dir=nowhere")
    assert not list(workdir.glob("runs/*/*"))


def test_an_image_of_any_kind_gets_the_same_labels(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    drawn = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    path = tmp_path / "Bild 1.png"
    drawn.save(path)
    predictor = Predictor.load(model)
    expected = predictor.predict(path)
    with path.open("rb") as file:
        kinds = [str(path), path.read_bytes(), bytearray(path.read_bytes()), file, drawn, np.asarray(drawn)]
        assert predictor.predict(kinds) == [expected] * len(kinds)
    assert predictor.predict(drawn) == expected == api.predict(path, model_dir=model)
    assert predictor.predict(np.stack([np.asarray(drawn)] * 2)) == [expected] * 2
    alpha = drawn.convert("RGBA")
    alpha.putalpha(128)
    assert predictor.predict(alpha) == predictor.predict(np.asarray(alpha))


def test_a_bad_image_does_not_spoil_the_others(tmp_path: Path) -> None:
    predictor = Predictor.load(make_model(tmp_path / "model"))
    good = np.zeros((20, 20), np.uint8)
    bad = [
        b"no image",
        tmp_path / "missing.png",
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((9, 9)),
        io.StringIO("x"),
        7,
    ]
    answers = predictor.predict([good, *bad, good])
    assert answers[0] == answers[-1] == predictor.predict(good)
    assert all(isinstance(a, (ImageError, UserError)) for a in answers[1:-1])
    with pytest.raises(ImageError):
        predictor.predict(b"no image")


@pytest.mark.slow
def test_the_notebook_runs(workdir: Path) -> None:
    names: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    metrics = names["metrics"]
    assert isinstance(metrics, dict) and 0 <= metrics["accuracy"] <= 1
