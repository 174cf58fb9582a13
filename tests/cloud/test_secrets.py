"""No secret value appears in a job body, a YAML, a log or a saved configuration; the step reads it from the vault."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.azure import QUICK
from helpers.azure_stand_in import StandIn

from objrec.cloud.secrets import read_secrets
from objrec.config.errors import UserError
from objrec.submit.command import run

VARIABLE = "BING_SEARCH_V7_SUBSCRIPTION_KEY"
SECRET = "s3cr3t-of-the-search-service"


@pytest.fixture
def vault_url(azure: StandIn) -> str:
    azure.secrets["bing"] = SECRET
    return azure.url.replace("127.0.0.1", "vault.blob.localhost")


def everything_under(folder: Path) -> str:
    return "\n".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


def test_no_secret_reaches_the_job(
    azure: StandIn, vault_url: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    for name in (VARIABLE, "COGNITIVE_SERVICES_API_KEY", "OBJREC_KEY", "AZURE_CLIENT_SECRET"):
        monkeypatch.setenv(name, SECRET)
    secrets = f"azure.secrets=[{VARIABLE}:bing]"
    for dry_run in ("true", "false"):
        assert run([*QUICK, f"azure.vault_url={vault_url}", secrets, f"dry_run={dry_run}"]) == 0
    bodies = json.dumps([[c.path, c.query, c.body] for c in azure.calls])
    assert f"vault:{vault_url}/secrets/bing" in bodies  # its address does travel, to the one step that needs it
    (name,) = azure.names("jobs")
    nodes = azure.get(f"jobs/{name}")["properties"]["jobs"]  # type: ignore[index]
    assert [n for n, node in nodes.items() if "vault:" in json.dumps(node)] == ["ingest"]
    assert nodes["ingest"]["identity"] == {"identity_type": "Managed"}
    said = capfd.readouterr()
    for text in (bodies, json.dumps(azure.resources), everything_under(workdir), said.out, said.err, caplog.text):
        assert SECRET not in text


def test_a_plain_secret_in_the_settings_is_refused_and_not_repeated(workdir: Path, capfd: Any) -> None:
    with pytest.raises(UserError, match=r"serve\.key: a secret on a command line") as caught:
        run([f"serve.key={SECRET}", "dry_run=true"])
    assert SECRET not in str(caught.value) + everything_under(workdir) + capfd.readouterr().out


def test_a_value_in_place_of_a_name_is_refused(workdir: Path) -> None:
    with pytest.raises(UserError, match="never the secret itself") as caught:
        run([f"azure.secrets=['{VARIABLE}:a/b+c==']", "azure.vault_url=https://v.vault.azure.net", "dry_run=true"])
    assert "a/b+c" not in str(caught.value)


def test_the_step_reads_it_with_its_identity(
    azure: StandIn, vault_url: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv(VARIABLE, f"vault:{vault_url}/secrets/bing")
    monkeypatch.setenv("DEFAULT_IDENTITY_CLIENT_ID", "11111111-0000-0000-0000-000000000000")
    monkeypatch.delenv("AZURE_CLIENT_ID", raising=False)
    read_secrets()
    assert os.environ[VARIABLE] == SECRET
    assert os.environ["AZURE_CLIENT_ID"] == os.environ["DEFAULT_IDENTITY_CLIENT_ID"]
    assert SECRET not in capfd.readouterr().out
    monkeypatch.delenv("AZURE_CLIENT_ID")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(403, "Forbidden", "Key Vault Secrets User"), (404, "SecretNotFound", "could not read the secret bing")],
)
def test_a_vault_that_refuses(
    azure: StandIn, vault_url: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str, said: str
) -> None:
    monkeypatch.setenv(VARIABLE, f"vault:{vault_url}/secrets/bing")
    azure.fail("GET", "^/secrets/bing", status, code, "no")
    with pytest.raises(UserError, match=said):
        read_secrets()


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "vault:myvault/bing")
    with pytest.raises(UserError, match="should be vault:https"):
        read_secrets()
