"""Nobody is called: no library looks up a host or leaves an identity behind, only because we import it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.serving import make_model

ROOT = Path(__file__).resolve().parents[2]

GUARD = """
import socket, sys
def refuse(*arguments, **_):
    sys.stderr.write(f"NETWORK {arguments}\\n")
    raise OSError("the network is not to be used")
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
socket.socket.connect = refuse
import objrec
"""
PROGRAMS = {
    "openvino": "import openvino; openvino.Core().compile_model('{model}', 'CPU')",
    "onnxruntime": "import onnxruntime; onnxruntime.InferenceSession('{model}', providers=['CPUExecutionProvider'])",
    "mlflow": "import mlflow; mlflow.set_tracking_uri('sqlite:///runs.db'); mlflow.set_experiment('x')",
}


@pytest.mark.parametrize("library", PROGRAMS)
def test_a_library_calls_nobody_and_leaves_no_identity(library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    model = make_model(tmp_path / "model") / "model.onnx"
    home, place = tmp_path / "home", tmp_path / "place"
    home.mkdir()
    place.mkdir()
    names = ("ORT_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "XDG_CONFIG_HOME")
    inherited = {k: v for k, v in os.environ.items() if k not in names and not k.startswith(("XDG_", "PYTEST"))}
    env = {**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", GUARD + PROGRAMS[library].format(model=model)]
    trace = tmp_path / "trace"
    if shutil.which("strace"):  # sees what native code does, too
        command = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", str(trace), *command]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=place, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert not trace.exists() or "AF_INET" not in trace.read_text()
    left = [p for p in home.rglob("*") if p.is_file() and "matplotlib" not in p.parts]
    assert not [p for p in left if "telemetry" in str(p).lower() or "deviceid" in str(p).lower()], left
    assert not left, left


def test_what_a_user_has_set_stays() -> None:
    program = "import os, objrec; print(os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['ORT_DISABLE_TELEMETRY'])"
    env = {"PATH": "", "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "false"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["false", "1"]
