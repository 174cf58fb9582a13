"""Fixtures for tests against a workspace on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.azure_stand_in import ACCOUNT, ACCOUNT_KEY, CONTAINER, GROUP, SUBSCRIPTION, WORKSPACE, StandIn, azurite

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"subscription_id": SUBSCRIPTION, "resource_group": GROUP, "workspace_name": WORKSPACE}
QUICK = ["azure.retries=0", "azure.timeout=5", "azure.poll_seconds=0.01"]


def find_azurite() -> Path | None:
    """Return the emulator: ``.objrec/azurite`` (see install_azurite.sh), or one on the path."""
    local = ROOT / ".objrec" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    found = local if local.exists() else shutil.which("azurite-blob")
    return Path(found) if found else None


def need_azure() -> Path:
    """Return the emulator, or skip. Where OBJREC_NEEDS_AZURE is set, a missing piece is a failure."""
    program = find_azurite()
    missing = [] if program else ["azurite (tests/install_azurite.sh)"]
    try:
        with warnings.catch_warnings(action="ignore"):  # the SDK is not ready for its own dependencies' next versions
            import azure.ai.ml  # noqa: F401
    except ImportError:
        missing.append("the Azure SDK (pip install 'objrec[azure]')")
    if missing:
        reason = f"needs {' and '.join(missing)}"
        if os.environ.get("OBJREC_NEEDS_AZURE"):
            pytest.fail(reason)
        pytest.skip(reason)
    assert program is not None
    return program


def loopback_names(real: Any) -> Any:
    """``*.localhost`` is this machine (RFC 6761); not every resolver knows."""
    return lambda host, *a, **k: real("127.0.0.1" if str(host).endswith(".localhost") else host, *a, **k)


@pytest.fixture(scope="session")
def azure_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    program = need_azure()
    folder = tmp_path_factory.mktemp("azure")
    with pytest.MonkeyPatch.context() as patch, azurite(program, folder) as blobs:
        patch.setattr(socket, "getaddrinfo", loopback_names(socket.getaddrinfo))
        stand_in = StandIn(folder, blobs)
        patch.setenv("REQUESTS_CA_BUNDLE", str(stand_in.certificate))
        stand_in.make_container(CONTAINER)
        yield stand_in
        stand_in.close()


@pytest.fixture
def azure(azure_world: StandIn, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """An empty workspace; the current folder holds its ``config.json``."""
    for name, value in azure_world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(workdir / "home"))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    azure_world.reset()
    yield azure_world
    azure_world.reset()


__all__ = ["ACCOUNT", "ACCOUNT_KEY", "CONFIG", "QUICK", "ROOT", "azure", "azure_world", "need_azure"]
