"""azureml/score.py under the real azureml-inference-server-http: the answers of the local endpoint."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from helpers.azure import ROOT
from helpers.serving import image, make_model

LIMITS = {"max_bytes": 200_000, "top_k": 2, "max_pixels": 1_000_000}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("registered") / "model_dir")


@pytest.fixture(scope="module")
def endpoint(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server as the platform starts it: the script in a snapshot, the model one folder below AZUREML_MODEL_DIR."""
    program = Path(sys.executable).parent / "azmlinfsrv"
    if not program.exists():
        if os.environ.get("OBJREC_NEEDS_AZURE"):
            pytest.fail("needs azureml-inference-server-http (pip install 'objrec[azure-scoring]')")
        pytest.skip("needs azureml-inference-server-http (pip install 'objrec[azure-scoring]')")
    from objrec.cloud.snapshot import snapshot_files, stage

    folder = tmp_path_factory.mktemp("server")
    (folder / "staged").mkdir()
    snapshot = stage(snapshot_files(ROOT), ROOT, folder / "staged")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        "AZUREML_MODEL_DIR": str(model_dir.parent),
        "OBJREC_SERVING": json.dumps(LIMITS),
    }
    log = (folder / "log").open("wb")
    command = [str(program), "--entry_script", str(snapshot / "azureml" / "score.py"), "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if requests.get(url, timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                time.sleep(0.1)
        else:
            process.kill()
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


@pytest.fixture(scope="module")
def local(model_dir: Path) -> Iterator[Any]:
    """The local endpoint's application around the same model."""
    from fastapi.testclient import TestClient

    from objrec.config.load import load_config
    from objrec.serving.app import create_app
    from objrec.serving.settings import ServiceSettings
    from objrec.serving.state import State

    config = load_config(
        [
            f"serve.max_bytes={LIMITS['max_bytes']}",
            f"serve.top_k={LIMITS['top_k']}",
            f"serve.max_pixels={LIMITS['max_pixels']}",
            "serve.runtime=onnxruntime",
        ]
    )
    settings = ServiceSettings.of(config, registry_dir=str(model_dir.parent / "registry"), model_dir=str(model_dir))
    with TestClient(create_app(State(settings))) as client:
        for _ in range(100):
            if client.get("/readyz").status_code == 200:
                break
            time.sleep(0.1)
        yield client


def jpeg(label: str, seed: int, **more: Any) -> bytes:
    out = io.BytesIO()
    image(label, seed, **more).save(out, "JPEG")
    return out.getvalue()


GOOD = jpeg("green", 1)
AS_JSON = json.dumps({"data": base64.b64encode(GOOD).decode()}).encode()
JSON = {"Content-Type": "application/json"}
REQUESTS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "raw": ("", GOOD, {"Content-Type": "image/jpeg"}),
    "octets": ("", GOOD, {"Content-Type": "application/octet-stream"}),
    "json": ("", AS_JSON, JSON),
    "top_k": ("?top_k=3", AS_JSON, JSON),
    "top_k in the body": ("", json.dumps({"data": base64.b64encode(GOOD).decode(), "top_k": 1}).encode(), JSON),
    "unknown": ("?unknown=true", GOOD, {"Content-Type": "image/jpeg"}),
    "cut off": ("", GOOD[:200], {"Content-Type": "image/jpeg"}),
    "no image": ("", b"hello", {"Content-Type": "image/png"}),
    "empty": ("", b"", {"Content-Type": "image/png"}),
    "text": ("", b"hello", {"Content-Type": "text/plain"}),
    "bad json": ("", b'{"data": ', JSON),
    "bad base64": ("", b'{"data": "%%%"}', JSON),
    "a url": ("", b'{"url": "http://127.0.0.1/x.jpg"}', JSON),
    "too many pixels": ("", jpeg("red", 2, size=(1200, 1000)), {"Content-Type": "image/jpeg"}),
    "too many bytes": ("", b"\xff\xd8" + b"x" * 400_000, {"Content-Type": "image/jpeg"}),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_answers_as_the_local_endpoint(endpoint: str, local: Any, what: str) -> None:
    query, body, headers = REQUESTS[what]
    given = requests.post(f"{endpoint}/score{query}", data=body, headers=headers, timeout=30)
    wanted = local.post(f"/score{query}", content=body, headers=headers)
    content = {k: v for k, v in wanted.json().items() if k != "request_id"}  # ours; Azure's stands in a header
    assert (given.status_code, given.json()) == (wanted.status_code, content)
    assert given.headers["Content-Type"] == "application/json"
    if what in ("raw", "octets", "json", "top_k", "top_k in the body"):
        assert given.json()["label"] == "green"


def test_predict_through_the_endpoint(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(GOOD)
    command = [sys.executable, str(ROOT / "predict.py"), str(tmp_path / "x.jpg"), "--endpoint", f"{endpoint}/score"]
    done = subprocess.run([*command, "--json", "--key", "k"], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"][0]["label"] == "green"


def test_no_torch_in_the_scoring_environment() -> None:
    names = {
        line.partition("==")[0].lower()
        for line in (ROOT / "azureml/environment/scoring/requirements.txt").read_text().splitlines()
    }
    assert {"onnxruntime", "pillow", "pydantic", "azureml-inference-server-http"} <= names
    assert not names & {"torch", "lightning", "timm", "hydra-core"}


def test_a_damaged_model_does_not_start(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model_dir"
    shutil.copytree(model_dir, broken)
    (broken / "model.onnx").write_bytes(b"damaged")
    script = "import runpy, sys; m = runpy.run_path(sys.argv[1]); m['init']()"
    environment = {**os.environ, "AZUREML_MODEL_DIR": str(tmp_path), "OBJREC_SERVING": json.dumps(LIMITS)}
    command = [sys.executable, "-c", script, str(ROOT / "azureml" / "score.py")]
    if not (Path(sys.executable).parent / "azmlinfsrv").exists():
        pytest.skip("needs azureml-inference-server-http")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode != 0
    assert "is damaged" in done.stderr
