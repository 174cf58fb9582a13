"""``predict.py``: what it takes, what it says, how it exits."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import CLASSES, image, make_images, make_model, put_in_registry, running_service, to_bytes

from objrec import predict
from objrec.client.inputs import ImageInput
from objrec.deployment.service import Service
from objrec.images.decode import ImageError
from objrec.inference.predictor import Predictor
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry, a model folder and images."""
    root = tmp_path_factory.mktemp("place")
    make_model(root / "model")
    make_images(root / "images", per_class=2)
    record = put_in_registry(root / "registry", root / "model")
    FolderRegistry(root / "registry").promote(record)
    (root / "bad.jpg").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def live(place: Path) -> Iterator[Service]:
    with running_service(place / "served", place / "model", key="k") as started:
        yield started


Run = Any


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: Any, status: int = 0, stdin: bytes = b"") -> tuple[list[str], str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))  # type: ignore[arg-type]
        assert predict.main([str(a) for a in arguments]) == status
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err

    return call


def test_an_image_by_the_model_in_production(place: Path, run: Run) -> None:
    out, _ = run(place / "images/red/0000.jpg", "--registry", place / "registry", "--top-k", 2)
    assert len(out) == 1 and out[0].split("  ")[1].startswith("red ") and len(out[0].split("  ")) == 3


def test_folder_glob_names_on_stdin_and_an_image_on_stdin_agree(place: Path, run: Run) -> None:
    model = ["--model", place / "model", "--json"]
    folder, _ = run(place / "images", *model)
    pattern, _ = run(place / "images" / "*" / "*.jpg", *model)
    names = "\n".join(json.loads(line)["image"] for line in folder).encode()
    listed, _ = run("-", *model, stdin=names)
    assert folder == pattern == listed and len(folder) == 6
    assert [json.loads(line)["label"] for line in folder] == [c for c in sorted(CLASSES) for _ in range(2)]
    piped, _ = run("-", *model, stdin=(place / "images/blue/0000.jpg").read_bytes())
    assert json.loads(piped[0]) == {**json.loads(folder[0]), "image": "stdin"}


def test_json_is_what_the_endpoint_answers(place: Path, run: Run, live: Service) -> None:
    file = place / "images/green/0001.jpg"
    here, _ = run(file, "--model", place / "model", "--json")
    there, _ = run(file, "--endpoint", live.url, "--key", "k", "--json")
    scored, _ = run(file, "--endpoint", f"{live.url}/score", "--key", "k", "--json")
    one, other = json.loads(here[0]), json.loads(there[0])
    assert there == scored and one["probability"] == pytest.approx(other["probability"], abs=1e-6)
    assert [p["label"] for p in one["predictions"]] == [p["label"] for p in other["predictions"]]
    assert set(one) == set(other) == {"image", "label", "probability", "predictions", "model_version"}
    assert one["model_version"] == other["model_version"] == ModelCard.load(place / "model").sha256
    _, said = run(file, "--endpoint", live.url, status=2)
    assert "--key" in said


def test_csv(place: Path, run: Run) -> None:
    out, _ = run(place / "images/blue", place / "bad.jpg", "--model", place / "model", "--csv", status=1)
    rows = list(csv.DictReader(out))
    assert [r["label"] for r in rows] == ["blue", "blue", ""] and rows[2]["error"]
    assert 0.5 < float(rows[0]["probability"]) <= 1 and rows[0]["others"].count(":") == 2


def test_bad_files_are_reported_counted_and_harm_no_other(place: Path, run: Run, live: Service) -> None:
    for where in (["--model", place / "model"], ["--endpoint", live.url, "--key", "k"]):
        out, said = run(place / "bad.jpg", place / "nothing.jpg", place / "images/red", *where, status=1)
        assert len(out) == 2 and "bad.jpg: not an image" in said and "nothing.jpg: no such file" in said
        assert "2 of 4 could not be labelled" in said
    out, _ = run(place / "bad.jpg", "--model", place / "model", "--json", status=1)
    assert set(json.loads(out[0])) == {"image", "error"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name an image"),
        (["x.jpg", "--top-k", "0"], "at least 1"),
        (["x.jpg", "--json", "--csv"], "cannot be combined"),
        (["x.jpg", "--model", "m", "--endpoint", "http://127.0.0.1:1"], "cannot be combined"),
        (["x.jpg", "--model", "nowhere"], "not a model folder"),
        (["x.jpg", "--registry", "nowhere"], "run python -m objrec.pipeline"),
        (["x.jpg", "--endpoint", "127.0.0.1:80"], "should be an address like"),
        ([str(Path(__file__)), "--endpoint", "http://127.0.0.1:9"], "does not answer"),
    ],
)
def test_mistakes_are_said_in_a_line(arguments: list[str], words: str, run: Run) -> None:
    _, said = run(*arguments, status=2)
    assert words in said and said.startswith("error: ") and said.count("\n") == 1


def test_empty_folders_and_patterns_are_failures(place: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, said = run(tmp_path / "empty", tmp_path / "*.jpg", "--model", place / "model", status=1)
    assert "no images in this folder" in said and "nothing matches" in said


def test_urls(place: Path, run: Run) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        model = ["--model", place / "model"]
        out, said = run(f"{base}/images/red/0000.jpg", "--image_url", f"{base}/none.jpg", *model, status=1)
        assert len(out) == 1 and "  red " in out[0] and "none.jpg: status 404" in said
        _, said = run("--image_url", "http://127.0.0.1:9/x.jpg", *model, status=1)
        assert "Connection refused" in said
    finally:
        server.shutdown()
        server.server_close()


def test_memory_is_flat_and_order_is_kept_over_ten_thousand_images() -> None:
    data = b"x" * 50_000

    def images() -> Iterator[ImageInput]:
        for i in range(10_000):
            yield ImageInput(str(i), bytes(data) + bytes([i % 256]))

    def classify(given: bytes) -> tuple[predict.Ranked, str, bool]:
        if given[-1] == 7:
            raise ImageError("corrupt", "bad")
        return [("a", 1.0)], "v", False

    tracemalloc.start()
    try:
        failed = 0
        for i, result in enumerate(predict.label(images(), classify, workers=2)):
            assert result.name == str(i)
            failed += result.error is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert failed == 40 and peak < 5_000_000  # all of them would be 500 MB


def test_the_documented_python_call(place: Path) -> None:
    predictor = Predictor.load(place / "model")
    (first, second) = predictor.predict([place / "images/red/0000.jpg", to_bytes(image("green", 0))], top_k=1)
    assert first[0][0] == "red" and second[0][0] == "green" and len(first) == 1


def test_a_label_takes_none_of_the_heavy_libraries(place: Path) -> None:
    program = (
        "import sys; from objrec.predict import main; status = main(sys.argv[1:])\n"
        "print(sorted({'torch', 'hydra', 'fastapi', 'lightning', 'onnx'} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    arguments = [str(place / "images/red/0000.jpg"), "--registry", str(place / "registry")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr.strip() == "[]"
    script = [sys.executable, str(ROOT / "predict.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True, cwd=place, check=True)
    assert "  red " in done.stdout
