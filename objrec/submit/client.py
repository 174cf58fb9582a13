"""Submission with the SDK: clusters and the environment as needed, then the job."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from objrec.cloud.environments import ROOT, ensure_environment
from objrec.cloud.workspace import connect, explained
from objrec.config.errors import UserError
from objrec.config.schema import AzureCluster, Config
from objrec.submit.jobs import CREATED_BY, Job

ENDED = {"Completed": 0, "Failed": 1, "Canceled": 1, "NotResponding": 1}


def submit(place: Path, job: Job, config: Config) -> tuple[str, int]:
    """Submit the job at ``place``; with ``azure.wait`` follow it. Returns its name and the exit status.

    Raises:
        UserError: the workspace, a right, a quota or the service is in the way.
    """
    client = connect(config.azure)
    used = {str(node["compute"]).removeprefix("azureml:") for node in job["jobs"].values()}
    for cluster in (config.azure.cpu, config.azure.gpu):
        if cluster.cluster in used:
            ensure_cluster(client, cluster)
    ensure_environment(client, config.azure.environment, ROOT / "azureml" / "environment" / "steps")
    from azure.ai.ml import load_job

    with explained("submit the job"):
        sent = client.jobs.create_or_update(load_job(str(place)))
    print(f"submitted   {sent.name}")
    print(f"studio      {sent.studio_url}", flush=True)
    return sent.name, follow(client, sent.name, config) if config.azure.wait else 0


def ensure_cluster(client: Any, cluster: AzureCluster) -> None:
    """Create a cluster when there is none of its name; one that is there is taken as it is."""
    from azure.ai.ml.entities import AmlCompute, IdentityConfiguration
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"look for the cluster {cluster.cluster}"):
        try:
            found = client.compute.get(cluster.cluster)
        except ResourceNotFoundError as error:
            if "workspace" in str(error).lower() and "compute" not in str(error).lower():
                raise
            found = None
    if found is not None:
        size = getattr(found, "size", None)
        if size and size.lower() != cluster.size.lower():
            print(f"cluster     {cluster.cluster} exists with size {size}, not {cluster.size}", file=sys.stderr)
        return
    wanted = AmlCompute(
        name=cluster.cluster,
        size=cluster.size,
        min_instances=0,
        max_instances=cluster.max_nodes,
        idle_time_before_scale_down=cluster.idle_seconds,
        tier=cluster.tier,
        identity=IdentityConfiguration(type="SystemAssigned"),
        tags=CREATED_BY,
    )
    with explained(f"create the cluster {cluster.cluster} of {cluster.size} (is there a quota for this size?)"):
        client.compute.begin_create_or_update(wanted).result()
    print(f"cluster     {cluster.cluster} created: 0 to {cluster.max_nodes} nodes of {cluster.size}", flush=True)


def state_of(job: Any) -> str:
    """Return a job's status as the service spells it; the SDK gives text or an enumeration."""
    return str(getattr(job.status, "value", job.status))


def follow(client: Any, name: str, config: Config) -> int:
    """Print each change of a step's state until the job has ended. Returns its exit status.

    A request that fails on the way is tried again: the job does not depend on who watches it.
    """
    seen: dict[str, str] = {}
    failures = 0
    started = time.monotonic()
    while True:
        try:
            with explained(f"look at the job {name}"):
                state = state_of(client.jobs.get(name))
                children = client.jobs.list(parent_job_name=name)
                steps = [(str(c.display_name or c.name), state_of(c)) for c in children if c is not None]
            failures = 0
        except UserError as error:
            failures += 1
            if failures > config.azure.retries:
                raise
            print(f"{error}; still following", file=sys.stderr, flush=True)
            steps, state = [], ""
        for step, now in [*steps, ("job", state)]:
            if now and seen.get(step) != now:
                seen[step] = now
                print(f"{time.monotonic() - started:8.0f} s  {step:<12}{now}", flush=True)
        if state in ENDED:
            return ENDED[state]
        time.sleep(config.azure.poll_seconds)
