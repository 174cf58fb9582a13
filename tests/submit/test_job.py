"""The job's definition, offline: what is derived, what is refused, what is told. No SDK, no account, no network."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.azure import ROOT
from packaging.requirements import Requirement

from objrec.cloud.environments import context_version
from objrec.cloud.snapshot import content_version, snapshot_files, stage
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.steps import load_steps
from objrec.submit import summary
from objrec.submit.checks import check_job
from objrec.submit.command import read_overrides, run
from objrec.submit.jobs import JobRequest, build_job

GOLDEN = ROOT / "tests" / "golden" / "azure_job.yaml"
CLUSTERS = {"objrec-cpu": 2, "objrec-gpu": 2}


def build(*overrides: str) -> dict[str, Any]:
    plain, space, config = read_overrides(overrides)
    return build_job(JobRequest(steps=load_steps(), config=config, overrides=plain, code=ROOT, space=space))


def component(job: dict[str, Any], step: str) -> dict[str, Any]:
    node = job["jobs"][step]
    found: dict[str, Any] = node.get("component") or node["trial"]
    return found


def command(job: dict[str, Any], step: str) -> str:
    return str(component(job, step)["command"])


def test_golden_job(update_golden: bool) -> None:
    """The whole job for the seed's recipe."""
    job = build("experiment=seed")
    for node in job["jobs"].values():
        node["component"]["code"] = "CODE"
        node["component"]["environment"] = "azureml:objrec:VERSION"
    text = yaml.safe_dump(job, sort_keys=False, width=100000)
    if update_golden:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_dry_run_imports_nothing_heavy_and_needs_nothing(workdir: Path) -> None:
    script = (
        "import sys; sys.argv=['submit.py','dry_run=true']; import runpy\n"
        "try: runpy.run_path(sys.argv_path, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'azure', 'torch', 'lightning', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    ).replace("sys.argv_path", repr(str(ROOT / "azureml" / "submit.py")))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AZURE", "IDENTITY"))}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    for told in ("train  on objrec-gpu", "python -m objrec.steps.train", "node-hours", "always runs"):
        assert told in done.stdout
    (written,) = (workdir / "runs" / "azure").glob("*/job.yaml")
    job = yaml.safe_load(written.read_text())
    code = (written.parent / job["jobs"]["train"]["component"]["code"]).resolve()
    assert (code / "objrec" / "steps" / "train.py").is_file()
    assert check_job(job, CLUSTERS) == []


def test_every_step_gets_what_it_reads_and_no_more() -> None:
    job = build("train.label_smoothing=0.2", "preprocess.jpeg_quality=90", "optimizer=adamw", "runs_dir=/tmp/x")
    assert "train.label_smoothing=0.2" in command(job, "train")
    assert "optimizer=adamw" in command(job, "train")
    assert "preprocess.jpeg_quality=90" in command(job, "preprocess")
    for step in ("ingest", "evaluate", "deploy"):
        assert not re.search("smoothing|adamw|jpeg", command(job, step)), step
    assert "/tmp/x" not in str(job)


def test_values_of_the_pipeline_inputs_are_not_repeated() -> None:
    job = build("train.max_epochs=3", "preprocess.image_size=48")
    assert job["inputs"]["max_epochs"] == 3
    assert job["inputs"]["image_size"] == 48
    assert "max_epochs=3" not in str(job["jobs"])
    assert job["jobs"]["train"]["inputs"]["max_epochs"] == "${{parent.inputs.max_epochs}}"


def test_determinism_is_as_the_cache_says() -> None:
    job = build("force=train")
    told = {name: component(job, name)["is_deterministic"] for name in job["jobs"]}
    assert told == {"ingest": True, "preprocess": True, "train": False, "evaluate": True, "deploy": False}
    assert build("force=all")["settings"]["force_rerun"] is True


def test_data_in_the_cloud_leaves_ingest_out() -> None:
    job = build("azure.data=azureml:my-images:3")
    assert list(job["jobs"]) == ["preprocess", "train", "evaluate", "deploy"]
    given = job["jobs"]["preprocess"]["inputs"]["raw_data_dir"]
    assert given == {"type": "uri_folder", "path": "azureml:my-images:3", "mode": "ro_mount"}
    with pytest.raises(UserError, match="is not data in the cloud"):
        build("azure.data=/home/me/images")


def test_a_source_on_a_datastore_and_one_on_this_machine(workdir: Path) -> None:
    address = "azureml://datastores/images/paths/animals"
    job = build("source=folder", f"source.path={address}", "azure.datastore=results")
    assert job["jobs"]["ingest"]["inputs"]["source_dir"]["path"] == address
    assert job["settings"]["default_datastore"] == "azureml:results"
    assert "animals" not in str([component(job, s) for s in job["jobs"]])
    (workdir / "animals").mkdir()
    job = build("source=folder", "source.path=animals")
    assert job["jobs"]["ingest"]["inputs"]["source_dir"]["path"] == str(workdir / "animals")
    with pytest.raises(UserError, match=r"source\.path=nowhere: there is no such file"):
        build("source=folder", "source.path=nowhere")


@pytest.mark.parametrize(
    ("overrides", "nodes", "processes"),
    [
        (["compute=multi_gpu", "azure.gpu.gpus=4"], 1, 4),
        (["compute=multi_node", "azure.gpu.gpus=2"], 2, 2),
        (["compute=gpu"], 1, None),
        (["compute=gpu", "compute.devices=2", "azure.gpu.gpus=4"], 1, 2),
    ],
)
def test_gpus_and_nodes(overrides: list[str], nodes: int, processes: int | None) -> None:
    job = build(*overrides)
    train = job["jobs"]["train"]
    assert train["resources"]["instance_count"] == nodes
    distribution = train["component"].get("distribution")
    assert distribution == (None if processes is None else {"type": "pytorch", "process_count_per_instance": processes})
    if processes is not None:
        assert f"compute.devices={processes} compute.num_nodes={nodes}" in command(job, "train")
    assert job["jobs"]["evaluate"]["resources"]["instance_count"] == 1
    assert check_job(job, CLUSTERS) == []


def test_what_the_cluster_cannot_do_is_refused_before_submission() -> None:
    with pytest.raises(UserError) as caught:
        build("compute=gpu", "compute.devices=8", "compute.num_nodes=5")
    assert "azure.gpu.gpus=1" in str(caught.value)
    assert "never start" in str(caught.value)
    with pytest.raises(UserError, match="must rise to 100"):
        build("azure.endpoint.traffic=[50,20]")


def damaged(**changes: Any) -> list[str]:
    job = copy.deepcopy(build())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = job["jobs"]
        for name in parents:
            place = place.setdefault(name, {}) if isinstance(place, dict) else place[name]
        place[last] = value
    return check_job(job, CLUSTERS)


def test_what_the_sdk_lets_through_is_found() -> None:
    assert damaged() == []
    cases = {
        "not declared": {"train__component__command": "python -m x ${{inputs.zzz}} ${{outputs.model_dir}}"},
        "nothing writes the output": {"evaluate__component__command": "true"},
        "not above 0": {"train__limits__timeout": -5},
        "none of objrec-cpu, objrec-gpu": {"train__compute": "azureml:gpu"},
        "would never start": {"train__resources__instance_count": 3},
        "would do all the work": {"train__resources__instance_count": 2},
        "no such input": {"train__inputs__momentum": "${{parent.inputs.speed}}"},
        "no such step": {"train__inputs__train_dir": "${{parent.jobs.prepare.outputs.train_dir}}"},
        "no such output": {"train__inputs__train_dir": "${{parent.jobs.preprocess.outputs.training}}"},
        "is not bound": {"train__component__inputs": {"more": {"type": "number"}}},
        "ingest -> train -> preprocess -> ingest": {
            "ingest__inputs__x": "${{parent.jobs.train.outputs.model_dir}}",
            "ingest__component__inputs__x": {"type": "uri_folder"},
        },
    }
    for said, changes in cases.items():
        assert any(said in problem for problem in damaged(**changes)), said


@pytest.mark.parametrize("algorithm", ["grid", "random", "bayesian"])
def test_a_sweep_file_says_the_same_to_hydra_and_to_azure(algorithm: str) -> None:
    job = build(f"sweep={algorithm}")
    train = job["jobs"]["train"]
    assert train["type"] == "sweep"
    assert train["sampling_algorithm"] == algorithm
    assert "deploy" not in job["jobs"]
    text = (ROOT / "configs" / "sweep" / f"{algorithm}.yaml").read_text()
    params = (
        yaml.safe_load(text).get("hydra") or yaml.safe_load((ROOT / "configs/sweep/random.yaml").read_text())["hydra"]
    )
    keys = set(params["sweeper"]["params"])
    for key in keys:
        assert len(re.findall(rf"{re.escape(key)}=\$\{{\{{inputs\.\w+\}}\}}", train["trial"]["command"])) == 1
    assert set(train["search_space"]) <= set(train["trial"]["inputs"])
    assert check_job(job, CLUSTERS) == []


def test_a_sweep_from_the_command_line() -> None:
    job = build("sweep=random", "train.momentum=choice(0.8,0.9)", "train.learning_rate=0.1", "optimizer=sgd,adamw")
    space = job["jobs"]["train"]["search_space"]
    assert space["momentum"] == {"type": "choice", "values": [0.8, 0.9]}
    assert space["optimizer"] == {"type": "choice", "values": ["sgd", "adamw"]}
    assert "learning_rate" not in space
    assert job["inputs"]["learning_rate"] == 0.1
    low, high = build("sweep=random")["jobs"]["train"]["search_space"]["learning_rate"].values().__iter__(), None
    assert next(low) == "loguniform" and high is None
    with pytest.raises(UserError, match=r"a grid needs choice"):
        build("sweep=grid", "train.momentum=interval(0.5,0.9)")


def test_the_snapshot_is_a_whitelist(tmp_path: Path) -> None:
    names = {p.relative_to(ROOT).as_posix() for p in snapshot_files(ROOT)}
    tops = {n.split("/")[0] for n in names}
    assert tops == {".amlignore", "azureml", "configs", "objrec"}
    in_azureml = {n for n in names if n.startswith("azureml/")}
    assert in_azureml == {"azureml/score.py"} | {
        f"azureml/environment/scoring/{n}" for n in ("Dockerfile", "requirements.in", "requirements.txt")
    }
    assert not [n for n in names if "__pycache__" in n or n.startswith("objrec/submit/")]
    kinds = {Path(n).suffix for n in names if n.startswith(("objrec/", "configs/"))}
    assert kinds <= {".py", ".yaml", ".html", ".css", ".js", ".j2"}


def test_a_readme_change_leaves_the_hash_unchanged(tmp_path: Path) -> None:
    copied = tmp_path / "checkout"
    for path in snapshot_files(ROOT):
        target = copied / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    before = content_version(snapshot_files(copied), copied)
    assert before == content_version(snapshot_files(ROOT), ROOT)
    for name in ("README.md", "tests/test_x.py", "docs/x.md", ".env", "objrec/submit/jobs.py", "azureml/submit.py"):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("changed")
    assert content_version(snapshot_files(copied), copied) == before
    (copied / "objrec" / "steps" / "train.py").write_text("changed")
    assert content_version(snapshot_files(copied), copied) != before


def test_staging_repairs_a_damaged_copy_and_keeps_one(tmp_path: Path) -> None:
    files = snapshot_files(ROOT)
    place = stage(files, ROOT, tmp_path)
    (place / "objrec" / "__init__.py").write_text("damaged")
    assert stage(files, ROOT, tmp_path) == place
    assert (place / "objrec" / "__init__.py").read_bytes() == (ROOT / "objrec" / "__init__.py").read_bytes()
    assert list(tmp_path.iterdir()) == [place]


def test_what_is_reused_is_told() -> None:
    before = build()
    marks = {**summary.fingerprints(before, "c1"), "code": "c1"}
    last = {"name": "job-1", "code": "c1", "steps": {k: v for k, v in marks.items() if k != "code"}}
    after = build("train.max_epochs=3")
    now = {**summary.fingerprints(after, "c1"), "code": "c1"}
    told = summary.reuse(after, now, last)
    assert told["ingest"].startswith("reused, if job-1")
    assert told["preprocess"].startswith("reused")
    assert told["train"] == "runs: its settings or what feeds it changed"
    assert told["evaluate"] == "runs: its settings or what feeds it changed"
    assert told["deploy"] == "always runs"
    other_code = {**summary.fingerprints(after, "c2"), "code": "c2"}
    assert summary.reuse(after, other_code, last)["ingest"] == "runs: the code changed"


def test_the_bound_of_the_cost() -> None:
    hours = "azure.timeouts.{}={}".format
    limits = [hours(s, 3600) for s in ("ingest", "preprocess", "train", "evaluate", "deploy")]
    job, config = build(*limits), load_config(limits)
    told = "3 node-hours of Standard_D4s_v3 + 2 node-hours of Standard_NC4as_T4_v3"
    assert summary.bound(job, config).startswith(told)
    unlimited = ["azure.timeouts.train=null"]
    assert "no bound: azure.timeouts.train" in summary.bound(build(*unlimited), load_config(unlimited))


def test_pins_satisfy_the_declared_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "azureml/environment/steps/requirements.txt").read_text().splitlines():
        name, sign, version = line.partition("==")
        assert sign, f"{line} is not pinned"
        pins[name.lower().replace("_", "-")] = version
    for text in [*project["dependencies"], *project["optional-dependencies"]["azure"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_a_changed_environment_has_another_version(tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(ROOT / "azureml" / "environment" / "steps", context)
    before = context_version(context)
    assert before == context_version(ROOT / "azureml" / "environment" / "steps")
    (context / "requirements.txt").write_text("torch==1.0")
    assert context_version(context) != before


def test_mistakes_are_told_at_once(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, said in (
        (["azure.gpu.sise=x", "dry_run=true"], "azure.gpu.size"),
        (["train.max_epochs=-1", "dry_run=true"], "train.max_epochs"),
        (["force=trian", "dry_run=true"], "no such step"),
        (["azure.cpu.tier=cheap", "dry_run=true"], "azure.cpu.tier"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            run(overrides)
    assert list(workdir.iterdir()) == [] or {p.name for p in workdir.iterdir()} <= {".objrec"}
