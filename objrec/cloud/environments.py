"""The two environments: azureml/environment/steps for the steps, azureml/environment/scoring for the endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from objrec.cloud.workspace import explained

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, or of the snapshot


def context_version(folder: Path) -> str:
    """Return 12 hex digits of the names and contents of a build context: what is the same is built once."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        total.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def ensure_environment(client: Any, name: str, context: Path) -> str:
    """Register a build context under the version that its content gives it; returns ``name:version``.

    Raises:
        UserError: what the service has against it.
    """
    from azure.ai.ml.entities import BuildContext, Environment
    from azure.core.exceptions import ResourceNotFoundError

    version = context_version(context)
    with explained(f"register the environment {name}:{version}"):
        try:
            client.environments.get(name, version)
        except ResourceNotFoundError:
            build = BuildContext(path=str(context))
            tags = {"created_by": "objrec"}
            client.environments.create_or_update(Environment(name=name, version=version, build=build, tags=tags))
            print(f"environment {name}:{version} registered: its image is built once, in some minutes", flush=True)
    return f"{name}:{version}"
