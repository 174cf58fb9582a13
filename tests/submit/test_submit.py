"""Submission with the real SDK, against a workspace on loopback and Azurite."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.azure import CONFIG, QUICK, ROOT
from helpers.azure_stand_in import StandIn

from objrec.cloud.snapshot import snapshot_files
from objrec.cloud.workspace import connect
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.submit.client import follow
from objrec.submit.command import run


def submit(*overrides: str) -> int:
    return run([*QUICK, *overrides])


def the_job(azure: StandIn) -> dict[str, Any]:
    (name,) = azure.names("jobs")
    job = azure.get(f"jobs/{name}")
    assert job is not None
    return job


def test_submission_and_resubmission(azure: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit() == 0
    job = the_job(azure)
    assert list(job["properties"]["jobs"]) == ["ingest", "preprocess", "train", "evaluate", "deploy"]
    assert f"/runs/{job['name']}" in capsys.readouterr().out
    train = job["properties"]["jobs"]["train"]
    assert train["outputs"]["model_dir"]["mode"] == "ReadWriteMount"
    assert train["computeId"].endswith("/computes/objrec-gpu")
    assert job["properties"]["jobs"]["deploy"]["identity"] == {"identity_type": "Managed"}

    (code,) = [r for p, r in azure.resources.items() if "/codes/" in p]
    azure.download(code["properties"]["codeUri"], tmp_path / "snapshot")
    arrived = {p.relative_to(tmp_path / "snapshot") for p in (tmp_path / "snapshot").rglob("*") if p.is_file()}
    assert arrived == {p.relative_to(ROOT) for p in snapshot_files(ROOT)}

    assert submit("train.max_epochs=3") == 0
    assert "reused, if" in capsys.readouterr().out
    assert len(azure.sent("POST", "codes/.*/startPendingUpload")) == 1
    assert len(azure.sent("PUT", "environments/")) == 1
    assert len(azure.names("jobs")) == 2


def test_missing_clusters_are_created_and_existing_ones_left_alone(azure: StandIn) -> None:
    azure.put("computes/objrec-cpu", {"computeType": "AmlCompute", "properties": {"vmSize": "Standard_Other"}})
    submit("azure.gpu.tier=dedicated", "azure.gpu.idle_seconds=90")
    (call,) = azure.sent("PUT", "computes/")
    assert call.path.endswith("/objrec-gpu")
    wanted = call.body["properties"]["properties"]
    assert wanted["vmPriority"] == "Dedicated"
    assert wanted["scaleSettings"] == {"maxNodeCount": 2, "minNodeCount": 0, "nodeIdleTimeBeforeScaleDown": "PT1M30S"}


def test_compute_cpu_needs_no_gpu_cluster(azure: StandIn) -> None:
    submit("compute=cpu")
    assert azure.names("computes") == ["objrec-cpu"]


@pytest.mark.parametrize(("last", "status"), [("Completed", 0), ("Failed", 1), ("Canceled", 1)])
def test_a_job_is_followed_to_its_end(azure: StandIn, capsys: Any, last: str, status: int) -> None:
    config = load_config([*QUICK, "azure.retries=1"])
    azure.put("jobs/a_job", {"jobType": "Pipeline", "status": "Queued", "jobs": {}, "services": {}})
    azure.job_states["a_job"] = ["Queued", "Running", "Running", "Running", last]
    azure.children["a_job"] = [{"name": "ingest", "status": "Completed"}, {"name": "train", "status": "Running"}]
    azure.fail("GET", r"/jobs/a_job", 400, "BadRequest", "a fault on the way", times=1)
    assert follow(connect(config.azure), "a_job", config) == status
    said = capsys.readouterr()
    assert "still following" in said.err
    assert re.search(rf"ingest +Completed\n.*train +Running\n(.*\n)*.*job +{last}\n", said.out)


ERRORS = [
    (401, "InvalidAuthenticationToken", "The access token is invalid.", "az login"),
    (403, "AuthorizationFailed", "The client does not have authorization", "AzureML Data Scientist"),
    (404, "ResourceNotFound", "The workspace 'studio' was not found", "config.json"),
    (409, "Conflict", "Another operation is in progress", "try again later"),
    (429, "TooManyRequests", "Rate limit", "too many requests"),
    (500, "InternalServerError", "An internal error", "status.azure.com"),
    (503, "ServiceUnavailable", "Busy", "status.azure.com"),
]


@pytest.mark.parametrize(("status", "code", "message", "cure"), ERRORS)
def test_the_services_refusals_become_messages(azure: StandIn, status: int, code: str, message: str, cure: str) -> None:
    azure.fail("GET", r"/computes/", status, code, message)
    with pytest.raises(UserError, match=re.escape(cure)) as caught:
        submit()
    assert str(caught.value).startswith(f"could not look for the cluster objrec-cpu: {status}: ")
    assert message in str(caught.value)
    assert not azure.sent("PUT", "")


def test_a_job_that_is_refused(azure: StandIn) -> None:
    azure.fail("PUT", r"/jobs/", 400, "UserError", "Component version is not valid")
    with pytest.raises(UserError, match=r"^could not submit the job: 400: .*Component version is not valid"):
        submit()


def test_a_throttled_request_is_tried_again(azure: StandIn) -> None:
    azure.fail("GET", r"/computes/", 429, "TooManyRequests", "Rate limit", times=2, headers={"Retry-After": "0"})
    assert submit("azure.retries=3") == 0


def test_a_service_that_does_not_answer_is_a_timeout(azure: StandIn) -> None:
    azure.fail("GET", r"/computes/", 0)
    with pytest.raises(UserError, match=r"did not answer in azure\.timeout"):
        submit("azure.timeout=0.3")


def test_no_quota_for_a_cluster(azure: StandIn) -> None:
    azure.fail("PUT", r"/computes/objrec-gpu", 400, "BadRequest", "The specified VM size has no quota")
    with pytest.raises(UserError, match=r"objrec-gpu of Standard_NC4as_T4_v3 \(is there a quota.*no quota"):
        submit()


def test_no_identity_is_a_clear_message(azure: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IDENTITY_ENDPOINT")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with pytest.raises(UserError, match="az login"):
        submit()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({k: v for k, v in CONFIG.items() if k != "resource_group"}), "has no resource_group"),
        (json.dumps({**CONFIG, "workspace_name": "<workspace>"}), "has no workspace_name"),
    ],
)
def test_a_missing_or_incomplete_config_json(workdir: Path, content: str | None, said: str) -> None:
    if content is not None:
        (workdir / "config.json").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        submit()
    assert '"subscription_id": "<id>"' in str(caught.value)


def test_cleanup_removes_what_is_ours_and_nothing_else(azure: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    azure.put("computes/objrec-cpu", {"computeType": "AmlCompute", "properties": {"vmSize": "x"}})  # not ours: no tag
    submit()
    assert submit("cleanup=true") == 0
    listed = capsys.readouterr().out
    assert "delete   cluster objrec-gpu" in listed
    assert "nothing was removed" in listed
    assert set(azure.names("computes")) == {"objrec-cpu", "objrec-gpu"}
    assert submit("cleanup=true", "azure.confirm=true") == 0
    assert azure.names("computes") == ["objrec-cpu"]
    assert the_job(azure)["properties"]["status"] == "Canceled"
