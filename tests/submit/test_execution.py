"""The job that reached the workspace, executed as the platform would: the very snapshot, node by node.

What this proves: the command lines, the bindings, the snapshot and the steps fit together, and give what the local
pipeline gives. What it cannot: that Azure accepts the job, builds the image, finds a node.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.azure import QUICK, ROOT
from helpers.azure_stand_in import StandIn

from objrec.config.schema import Sweep
from objrec.submit.command import run

SETTINGS = [
    "classes.names=[cat,ship]",
    "ingest.num_images=20",
    "preprocess.exact_split=true",
    "preprocess.image_size=32",
    "train.max_epochs=1",
    "train.batch_size=14",
    "compute=cpu",
    "seed=3",
]


class Platform:
    """Runs the nodes of a job of the workspace in a clean folder, inputs and outputs bound to folders."""

    def __init__(self, azure: StandIn, folder: Path) -> None:
        self.azure, self.folder = azure, folder
        (name,) = azure.names("jobs")
        job = azure.get(f"jobs/{name}")
        assert job is not None
        self.job = job["properties"]
        self.outputs: dict[tuple[str, str], Path] = {}

    def order(self) -> list[str]:
        """Return the nodes so that each comes after those that feed it."""
        needs = {
            name: {m[1] for i in node["inputs"].values() if (m := re.match(r"\$\{\{parent\.jobs\.(\w+)\.", i["value"]))}
            for name, node in self.job["jobs"].items()
        }
        ordered: list[str] = []
        while needs:
            ready = next(n for n, before in needs.items() if before <= set(ordered))
            ordered.append(ready)
            del needs[ready]
        return ordered

    def execute(self, name: str, environment: dict[str, str]) -> None:
        node = self.job["jobs"][name]
        spec = self.azure.resources[node["componentId"]]["properties"]["componentSpec"]
        place = self.folder / name
        code = self.azure.resources[spec["code"].removeprefix("azureml:")]["properties"]["codeUri"]
        root = place / "code"
        self.azure.download(code, root)
        values = {f"inputs.{k}": self._bound(v["value"]) for k, v in node["inputs"].items()}
        for port, output in spec["outputs"].items():
            path = place / "outputs" / port
            (path if output["type"] == "uri_folder" else path.parent).mkdir(parents=True, exist_ok=True)
            self.outputs[name, port] = path
            values[f"outputs.{port}"] = str(path)
        command = re.sub(r"\$\{\{([\w.]+)\}\}", lambda m: values[m[1]], spec["command"])
        log = place / "log"
        with log.open("wb") as out:
            done = subprocess.run(
                ["bash", "-c", command], cwd=root, env=environment, stdout=out, stderr=out, timeout=280
            )
        assert done.returncode == 0, f"{name}: {log.read_text()[-3000:]}"

    def _bound(self, value: str) -> str:
        if match := re.fullmatch(r"\$\{\{parent\.jobs\.(\w+)\.outputs\.(\w+)\}\}", value):
            return str(self.outputs[match[1], match[2]])
        if match := re.fullmatch(r"\$\{\{parent\.inputs\.(\w+)\}\}", value):
            return str(self.job["inputs"][match[1]]["value"])
        return value


def bare_environment(home: Path, **more: str) -> dict[str, str]:
    """Only what a container has: no PYTHONPATH, no settings of this session."""
    bare = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8"}
    return {**bare, "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "AZUREML_RUN_ID": "node", **more}


def local_accuracy(folder: Path) -> dict[str, Any]:
    """Run the same configuration with the local pipeline and return its accuracy file."""
    folder.mkdir()
    command = [sys.executable, "-m", "objrec.pipeline", *SETTINGS, "deploy.start=false"]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}  # as many as the nodes
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "runs" / "pipeline" / "latest" / "run.json").read_text())
    path = next(s for s in record["steps"] if s["name"] == "evaluate")["outputs"]["accuracy_file"]
    found: dict[str, Any] = json.loads((folder / path).read_text())
    return found


@pytest.mark.timeout(600)
def test_the_executed_job_gives_the_local_runs_accuracy(azure: StandIn, tmp_path: Path) -> None:
    assert run([*QUICK, "azure.endpoint.settle_seconds=0", *SETTINGS]) == 0
    platform = Platform(azure, tmp_path / "platform")
    order = platform.order()
    assert order == ["ingest", "preprocess", "train", "evaluate", "deploy"]
    pytest.importorskip("mlflow")
    runs = open_runs(tmp_path, order[:-1])
    for name in order[:-1]:
        tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/studio.db", "MLFLOW_RUN_ID": runs[name]}
        platform.execute(name, bare_environment(tmp_path, **tracking))
    cloud = json.loads(platform.outputs["evaluate", "accuracy_file"].read_text())
    shown_in_the_studio(tmp_path, cloud["accuracy"])

    local = local_accuracy(tmp_path / "local")
    assert cloud["accuracy"] == local["accuracy"]
    assert cloud["test_data_fingerprint"] == local["test_data_fingerprint"]
    assert cloud["model_sha256"] == local["model_sha256"]

    deployed_by_the_job(azure, platform, tmp_path, cloud)


def open_runs(folder: Path, names: list[str]) -> dict[str, str]:
    """Open a run for each node, as the platform does, and return their ids."""
    script = (
        "import mlflow, sys; c = mlflow.MlflowClient(); e = c.create_experiment('job', sys.argv[1]); "
        "print(*(c.create_run(e, run_name=n).info.run_id for n in sys.argv[2:]))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/studio.db"}
    command = [sys.executable, "-W", "ignore", "-c", script, (folder / "artifacts").as_uri(), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, done.stdout.splitlines()[-1].split(), strict=True))


def shown_in_the_studio(folder: Path, accuracy: float) -> None:
    """Metrics and artifacts lie in the runs that the platform opened, and in no other."""
    import sqlite3

    database = sqlite3.connect(folder / "studio.db")
    runs = {name for (name,) in database.execute("select name from runs")}
    assert runs == {"ingest", "preprocess", "train", "evaluate"}
    rows = database.execute("select r.name, m.key, m.value from metrics m join runs r on r.run_uuid = m.run_uuid")
    metrics = {(run, key): value for run, key, value in rows}
    database.close()
    assert metrics["evaluate", "test/acc"] == accuracy
    objectives = get_args(Sweep.model_fields["metric"].annotation)  # under these names a sweep looks for its trials'
    assert {("train", name) for name in objectives} <= metrics.keys()
    artifacts = {p.name for p in (folder / "artifacts").rglob("*") if p.is_file()}
    assert {"report.html", "confusion_matrix.png", "metrics.csv", "model.json"} <= artifacts


def deployed_by_the_job(azure: StandIn, platform: Platform, folder: Path, cloud: dict[str, Any]) -> None:
    """The last node: the workspace's address comes from the platform, the answers from the model that it uploads."""
    from helpers.azure_stand_in import GROUP, SUBSCRIPTION, WORKSPACE

    from objrec.inference.predictor import Predictor
    from objrec.serving import request as handler

    predictor = Predictor.load(platform.outputs["train", "model_dir"])

    def answer(deployment: str, body: bytes, content_type: str) -> tuple[int, Any]:
        reply = handler.score(body, content_type, predictor)
        return reply.status, dict(reply.body)

    azure.scoring = answer
    names = folder / "names"  # this machine's resolver may not know that *.localhost is loopback
    names.mkdir()
    shutil.copyfile(ROOT / "tests" / "helpers/loopback_names.py", names / "sitecustomize.py")
    workspace = {
        "AZUREML_ARM_SUBSCRIPTION": SUBSCRIPTION,
        "AZUREML_ARM_RESOURCEGROUP": GROUP,
        "AZUREML_ARM_WORKSPACE_NAME": WORKSPACE,
        "DEFAULT_IDENTITY_CLIENT_ID": "11111111-0000-0000-0000-000000000000",
        "PYTHONPATH": str(names),
    }
    platform.execute("deploy", bare_environment(folder, **azure.environment, **workspace))
    told = json.loads(platform.outputs["deploy", "endpoint_file"].read_text())
    assert told["deployed"] and told["model_version"] == cloud["model_sha256"]
    (endpoint,) = azure.names("onlineEndpoints")
    found = azure.get(f"onlineEndpoints/{endpoint}")
    assert found is not None and found["properties"]["traffic"] == {"blue": 100}


@pytest.mark.slow
def test_two_processes_as_the_platform_starts_them(tmp_path: Path) -> None:
    """``PyTorchDistribution`` starts the same command line in each process and tells each its rank; on CPUs here."""
    from helpers.serving import make_images

    train_dir, valid_dir = make_images(tmp_path / "train"), make_images(tmp_path / "valid", per_class=4, first=50)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model_dir = tmp_path / "model_dir"
    model_dir.mkdir()
    command = [sys.executable, "-m", "objrec.steps.train", f"train_dir={train_dir}", f"valid_dir={valid_dir}"]
    command += [f"model_dir={model_dir}", "preprocess.image_size=32", "train.max_epochs=1", "train.batch_size=4"]
    command += ["compute.accelerator=cpu", "compute.devices=2", "compute.num_nodes=1"]
    shared = {"WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=bare_environment(tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", **shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [p.communicate(timeout=280)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], logs
    assert "MEMBER: 1/2" in logs[0]
    assert "MEMBER: 2/2" in logs[1]
    card = json.loads((model_dir / "model.json").read_text())
    assert card["class_names"] == ["blue", "green", "red"]
    assert (model_dir / "model.onnx").is_file()
