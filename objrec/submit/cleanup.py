"""``python azureml/submit.py cleanup=true``: list what objrec made in the workspace and, confirmed, remove it.

Only what carries our tag is touched. What costs nothing by lying there cannot be deleted through the SDK and is
archived: models and environments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from objrec.cloud.deployment import endpoint_name
from objrec.cloud.workspace import connect, explained
from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.submit.client import ENDED, state_of
from objrec.submit.jobs import CREATED_BY


@dataclass(frozen=True)
class Item:
    """Something of ours: what it is, and how it goes."""

    what: str
    how: str
    remove: Callable[[], Any]


def clean_up(config: Config) -> int:
    """List, ask, remove. Returns the exit status: 1 when something could not be removed."""
    client = connect(config.azure)
    with explained("list what was made"):
        items = list(found(client, config))
    if not items:
        print("no resource in the workspace has objrec's tag")
        return 0
    for item in items:
        print(f"{item.how:<8} {item.what}")
    if not (config.azure.confirm or _agreed()):
        print("nothing was removed; azure.confirm=true removes without asking")
        return 0
    failed = 0
    for item in items:
        try:
            with explained(f"{item.how} {item.what}"):
                item.remove()
        except UserError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"done     {item.what}", flush=True)
    return 1 if failed else 0


def found(client: Any, config: Config) -> Iterator[Item]:
    """Yield what carries our tag, in the order of removal: what costs most first."""
    name = endpoint_name(config)
    for endpoint in client.online_endpoints.list():
        if endpoint.name == name and _ours(endpoint):
            yield Item(f"endpoint {name} and its deployments", "delete", lambda: _wait(client.online_endpoints, name))
    for job in client.jobs.list():
        if job is not None and _ours(job) and state_of(job) not in ENDED:
            yield Item(f"job {job.name} ({state_of(job)})", "cancel", _bind(_cancel, client, job.name))
    for cluster in (config.azure.cpu.cluster, config.azure.gpu.cluster):
        for compute in client.compute.list():
            if compute.name == cluster and _ours(compute):
                yield Item(f"cluster {cluster}", "delete", _bind(_wait, client.compute, cluster))
    for model in _listed(client.models, config.azure.model_name):
        archive = _bind(client.models.archive, config.azure.model_name, model.version)
        yield Item(f"model {config.azure.model_name}:{model.version}", "archive", archive)
    for name_ in (config.azure.environment, f"{config.azure.environment}-scoring"):
        for environment in _listed(client.environments, name_):
            archive = _bind(client.environments.archive, name_, environment.version)
            yield Item(f"environment {name_}:{environment.version}", "archive", archive)


def _listed(operations: Any, name: str) -> list[Any]:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return [item for item in operations.list(name) if _ours(item)]
    except ResourceNotFoundError:
        return []


def _ours(item: Any) -> bool:
    return CREATED_BY.items() <= dict(item.tags or {}).items()


def _bind(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _wait(operations: Any, name: str) -> None:
    operations.begin_delete(name).result()


def _cancel(client: Any, name: str) -> None:
    client.jobs.begin_cancel(name).result()


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    return input("remove all of this? [yes/no] ").strip().lower() in ("y", "yes")
