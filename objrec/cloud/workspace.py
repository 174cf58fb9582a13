"""The way into a workspace, and the service's errors in a user's words."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Azure

KEYS = ("subscription_id", "resource_group", "workspace_name")
EXAMPLE = '{"subscription_id": "<id>", "resource_group": "<group>", "workspace_name": "<workspace>"}'
IN_A_JOB = dict(
    zip(KEYS, ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME"), strict=True)
)


@dataclass(frozen=True)
class Workspace:
    """Where a workspace is."""

    subscription_id: str
    resource_group: str
    workspace_name: str

    @property
    def path(self) -> str:
        """Its address in the resource manager."""
        return (
            f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.workspace_name}"
        )


def read_workspace(config: str) -> Workspace:
    """Read ``config.json``, or inside a job the platform's environment variables.

    Raises:
        UserError: when the file is missing or incomplete, with an example.
    """
    if all(os.environ.get(v) for v in IN_A_JOB.values()):
        return Workspace(*(os.environ[v] for v in IN_A_JOB.values()))
    places = [Path(config), Path(".azureml") / config]
    path = next((p for p in places if p.is_file()), None)
    cure = f"The portal offers it (workspace, Overview, Download config.json), or write it: {EXAMPLE}"
    if path is None:
        raise UserError(f"azure.config={config}: there is no such file; it names the workspace to use. {cure}")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}). {cure}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object. {cure}")
    missing = [k for k in KEYS if not isinstance(data.get(k), str) or not data[k].strip() or "<" in data[k]]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}. {cure}")
    return Workspace(*(data[k].strip() for k in KEYS))


def credential() -> Any:
    """Return ``DefaultAzureCredential``; in a job it is the compute's identity."""
    from azure.identity import DefaultAzureCredential

    if (client := os.environ.get("DEFAULT_IDENTITY_CLIENT_ID")) and not os.environ.get("AZURE_CLIENT_ID"):
        os.environ["AZURE_CLIENT_ID"] = client
    return DefaultAzureCredential()


def connect(settings: Azure) -> Any:
    """Return an ``MLClient`` for the workspace. Raises UserError."""
    workspace = read_workspace(settings.config)
    quiet()
    try:
        from azure.ai.ml import MLClient
    except ImportError:
        raise UserError("the Azure SDK is not installed: pip install 'objrec[azure]'") from None
    with explained("connect to the workspace"):
        return MLClient(
            credential(),
            workspace.subscription_id,
            workspace.resource_group,
            workspace.workspace_name,
            enable_telemetry=False,
            show_progress=False,
            retry_total=settings.retries,
            retry_status=settings.retries,
            connection_timeout=settings.timeout,
            read_timeout=settings.timeout,
        )


def quiet() -> None:
    """Silence what the SDK tells of itself: experimental classes and every blob that it uploads."""
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    logging.getLogger("msrest").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(azure|marshmallow|msrest)")


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn the SDK's errors into a UserError that says what was being done, what the service said, and the cure."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (told := explain(error)) is None:
            raise
        raise UserError(f"could not {doing}: {told}") from error


def explain(error: BaseException) -> str | None:
    """Return what an error of the SDK means for the user, or None where it is none of theirs."""
    from azure.core import exceptions as core

    said = _said(error)
    status = getattr(error, "status_code", None)
    if isinstance(error, core.ClientAuthenticationError) and status is None:
        return f"no way to sign in was found. On your machine: az login. In a job: an identity of the cluster. ({said})"
    if status is not None:
        return _by_status(status, said, error)
    if isinstance(error, (core.ServiceRequestError, core.ServiceResponseError)):
        return f"Azure could not be reached or did not answer in azure.timeout seconds; try again. ({said})"
    if type(error).__module__.startswith("azure.") or type(error).__name__ == "ValidationError":
        return said
    return None


def _by_status(status: int, said: str, error: Any) -> str:
    if status == 401:
        return f"401: Azure does not accept the sign-in: az login again, to the workspace's tenant. ({said})"
    if status == 403 and str(getattr(error, "error_code", "")).startswith("Authorization"):  # said by the blob store
        return f"403: your account needs the role 'Storage Blob Data Contributor' on the workspace's storage. ({said})"
    if status == 403:
        return (
            f"403: your account may not do this. It needs the role 'AzureML Data Scientist' on the workspace, and "
            f"'AzureML Compute Operator' to create clusters. ({said})"
        )
    if status == 404:
        return f"404: there is no such thing. Is the workspace in config.json the right one? ({said})"
    if status == 409:
        return f"409: something else is changing it, or it exists with other properties; try again later. ({said})"
    if status == 429:
        after = error.response.headers.get("Retry-After") if error.response is not None else None
        return f"429: too many requests{f'; try again in {after} s' if after else '; try again later'}. ({said})"
    if status >= 500:
        return f"{status}: Azure has a fault; try again later, and see https://status.azure.com. ({said})"
    return f"{status}: {said}"


def _said(error: BaseException) -> str:
    message = getattr(getattr(error, "error", None), "message", None) or getattr(error, "message", None) or str(error)
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
