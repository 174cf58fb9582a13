"""The workspace's model registry, as the gate sees it: what serves is what the endpoint's traffic goes to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrec.cloud.workspace import explained
from objrec.config.errors import UserError
from objrec.deployment.gate import Unusable
from objrec.model_registry.records import Record
from objrec.models.card import ModelCard
from objrec.system.files import file_sha256

CONTENT = "content_sha256"  # a tag: hash over all files of the model folder
NUMBERS = {"accuracy": float, "num_images": int}


@dataclass(frozen=True)
class AzureRegistry:
    """Models of one name, each with its record as tags."""

    client: Any  # azure.ai.ml.MLClient
    model_name: str
    endpoint_name: str

    def production(self) -> Record | None:
        """The model behind the deployment that takes most of the traffic, or None when none does."""
        deployment = self.serving()
        return None if deployment is None else record_of(dict(deployment.tags or {}), deployment.name)

    def serving(self) -> Any | None:
        """Return the deployment that takes most of the traffic, or None."""
        from azure.core.exceptions import ResourceNotFoundError

        with explained(f"look at the endpoint {self.endpoint_name}"):
            try:
                endpoint = self.client.online_endpoints.get(self.endpoint_name)
            except ResourceNotFoundError:
                return None
            traffic = {n: s for n, s in (endpoint.traffic or {}).items() if s > 0}
            if not traffic:
                return None
            return self.client.online_deployments.get(max(traffic, key=lambda n: traffic[n]), self.endpoint_name)

    def register(self, model_dir: Path, record: Record, tags: dict[str, str]) -> str:
        """Upload a model folder as the next version and return it; the version that holds this model is reused.

        Raises:
            UserError: the upload failed, or what is registered has no files.
        """
        from azure.ai.ml.entities import Model

        with explained(f"register the model {self.model_name}"):
            for known in self._versions():
                if (known.tags or {}).get("sha256") == record.sha256 and known.path:
                    return str(known.version)
            tags = {**tags_of(record), **tags, CONTENT: content_of(model_dir)}
            model = Model(name=self.model_name, path=str(model_dir), type="custom_model", tags=tags)
            made = self.client.models.create_or_update(model)
            found = self.client.models.get(self.model_name, made.version)
        if not found.path:
            raise UserError(f"{self.model_name}:{found.version} was registered without files: try again")
        return str(found.version)

    def download(self, sha256: str, folder: Path) -> Path:
        """Download the model with these weights and return its folder.

        Raises:
            Unusable: it is not there, or is not what was registered.
            UserError: the workspace did not answer.
        """
        with explained(f"download the model {sha256[:12]}"):
            found = next((m for m in self._versions() if (m.tags or {}).get("sha256") == sha256), None)
            if found is None:
                raise Unusable(f"{self.model_name} has no version with the model {sha256[:12]} that serves")
            self.client.models.download(self.model_name, found.version, download_path=str(folder))
        place = model_folder(folder)
        expected = (found.tags or {}).get(CONTENT)  # older versions wrote none
        if expected is not None and content_of(place) != expected:
            raise Unusable(f"{self.model_name}:{found.version} is damaged: its files are not those registered")
        return place

    def _versions(self) -> list[Any]:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return list(self.client.models.list(self.model_name))
        except ResourceNotFoundError:
            return []


def model_folder(folder: Path) -> Path:
    """Return the model folder in what was downloaded. Raises Unusable when there is none."""
    found = sorted(folder.rglob("model.json"), key=lambda p: len(p.parts))
    if not found:
        raise Unusable(f"{folder.name}: what is registered in the workspace holds no model folder")
    return found[0].parent


def content_of(model_dir: Path) -> str:
    """Return a hash over all files of a model folder that prediction and the gate read, ``model.json`` among them.

    Raises:
        Unusable: a file is missing, or ``model.json`` is damaged.
    """
    try:
        names = {*ModelCard.load(model_dir).files, "model.json"}
        lines = [f"{name} {file_sha256(model_dir / name)}\n" for name in sorted(names)]
    except (UserError, OSError) as error:
        raise Unusable(str(error)) from None
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tags_of(record: Record) -> dict[str, str]:
    """Return a record as tags: text only."""
    return {k: str(v) for k, v in record.model_dump().items() if v is not None}


def record_of(tags: dict[str, str], where: str) -> Record:
    """Return the record in a deployment's tags. Raises UserError when they are not ours."""
    try:
        values: dict[str, Any] = {k: NUMBERS.get(k, str)(v) for k, v in tags.items() if k in Record.model_fields}
        return Record(**values)
    except ValueError as error:
        raise UserError(
            f"the deployment '{where}' takes the traffic and was not made by objrec: its tags say no accuracy. "
            f"Choose another azure.endpoint.name ({str(error).splitlines()[0]})"
        ) from None
