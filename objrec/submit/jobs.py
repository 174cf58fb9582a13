"""The pipeline job as Azure ML's own YAML, derived from the declarations of the steps.

The dry run writes this text and submission loads it, so what was read is what is sent; ``az ml job create -f`` takes
it too. Schema: https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrec.cloud.environments import ROOT, context_version
from objrec.cloud.secrets import address
from objrec.config.errors import UserError
from objrec.config.schema import AzureCluster, Config
from objrec.steps.base import Port, Step, lookup
from objrec.submit.overrides import PARAMETERS, parameters_of, share_out
from objrec.submit.sweep import AzureSpace, sweep_node

SCHEMA = "https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json"
CREATED_BY = {"created_by": "objrec"}
REMOTE = ("azureml:", "https://", "wasbs://", "abfss://")
Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is to be submitted.

    Attributes:
        config: the whole configuration; ``overrides`` as the user typed them, without swept values.
        space: what a sweep varies; None for a plain job.
        code: the folder that is uploaded and in which the command lines run.
        git_commit: shown as a tag.
    """

    steps: Sequence[Step]
    config: Config
    overrides: Sequence[str]
    code: Path
    space: AzureSpace | None = None
    git_commit: str | None = None


def build_job(request: JobRequest) -> Job:
    """Return the job's definition. Local paths in it are absolute.

    Raises:
        UserError: for a configuration that cannot run in the cloud, with everything that stands against it.
    """
    config = request.config
    steps = steps_to_run(request)
    _check_compute(config)
    additions = {s.name: _additions(s, config) for s in steps}
    passed = share_out(steps, config, request.overrides, additions)
    origins = {p.name: s.name for s in steps for p in s.outputs}
    nodes = {}
    for step in steps:
        node = _command_node(step, config, passed[step.name], origins, request.code)
        if request.space is not None and step.distributed:
            node = sweep_node(node, request.space, config)
        nodes[step.name] = node
    shown = sorted(
        {name for s in steps for name in parameters_of(s, config)} - set(_swept(request)), key=list(PARAMETERS).index
    )
    return {
        "$schema": SCHEMA,
        "type": "pipeline",
        "display_name": config.azure.name or "objrec",
        "experiment_name": config.azure.experiment,
        "description": "From class names to a trained image classifier behind a URL.",
        "tags": {**CREATED_BY, **({"git_commit": request.git_commit} if request.git_commit else {})},
        "settings": {
            "default_compute": f"azureml:{config.azure.cpu.cluster}",
            **({"default_datastore": f"azureml:{config.azure.datastore}"} if config.azure.datastore else {}),
            "continue_on_step_failure": False,
            "force_rerun": "all" in config.force,
        },
        "inputs": {name: lookup(config, PARAMETERS[name]) for name in shown},
        "jobs": nodes,
    }


def steps_to_run(request: JobRequest) -> list[Step]:
    """Return the steps of the job: all but those whose outputs are given, and deploy where trials are compared."""
    config = request.config
    known = {s.name for s in request.steps}
    if unknown := sorted(set(config.force) - known - {"all"}):
        raise UserError(f"force={unknown[0]}: no such step; there are {', '.join(sorted(known))}")
    steps = [s for s in request.steps if any(_given(config, p) is None for p in s.outputs)]
    if request.space is not None:
        steps = [s for s in steps if s.cached]
        if not any(s.distributed for s in steps):
            raise UserError("sweep: no training to vary when model_dir is given")
    return steps


def cluster_of(step: Step, config: Config) -> AzureCluster:
    """Return the cluster that a step runs on; with ``compute=cpu`` no GPU cluster is needed."""
    wants_gpu = step.compute == "gpu" and config.compute.accelerator != "cpu"
    return config.azure.gpu if wants_gpu else config.azure.cpu


def environment_version() -> str:
    """Return the version of the environment: what its build context holds, so that a change makes a new one."""
    return context_version(ROOT / "azureml" / "environment" / "steps")


def processes(step: Step, config: Config) -> tuple[int, int]:
    """Return (nodes, processes on each) of a step."""
    if not step.distributed or cluster_of(step, config) is not config.azure.gpu:
        return 1, 1
    devices = config.compute.devices
    count = config.azure.gpu.gpus if devices in ("auto", -1) else len(devices) if isinstance(devices, list) else devices
    assert isinstance(count, int)
    return config.compute.num_nodes, count


def _check_compute(config: Config) -> None:
    gpu, compute = config.azure.gpu, config.compute
    problems = []
    if compute.accelerator == "cpu":
        return
    if compute.accelerator in ("mps", "tpu"):
        problems.append(f"compute.accelerator={compute.accelerator}: not available on Azure; use auto, cpu or gpu")
    devices = len(compute.devices) if isinstance(compute.devices, list) else compute.devices
    if isinstance(devices, int) and devices > gpu.gpus:
        problems.append(f"compute.devices={devices}: a node of size {gpu.size} has azure.gpu.gpus={gpu.gpus}")
    if compute.num_nodes > gpu.max_nodes:
        problems.append(
            f"compute.num_nodes={compute.num_nodes}: {gpu.cluster} has at most azure.gpu.max_nodes={gpu.max_nodes}, "
            "so the job would never start"
        )
    if problems:
        raise UserError(problems)


def _additions(step: Step, config: Config) -> list[str]:
    """Return the overrides that submission adds to a step."""
    added = []
    nodes, per_node = processes(step, config)
    if nodes * per_node > 1:
        added += [f"compute.devices={per_node}", f"compute.num_nodes={nodes}"]
    if step.distributed:  # curves go to the platform; nothing of the result depends on it
        added.append("logger=mlflow")
    if not step.cached:
        added.append("deploy.target=azure")
    return added


def _secrets(step: Step, config: Config) -> dict[str, str]:
    """Return the environment variables of a step that asks a source: addresses in the vault, no values."""
    if not config.azure.secrets or "source" not in step.reads:
        return {}
    assert config.azure.vault_url is not None
    pairs = (text.split(":") for text in sorted(config.azure.secrets))
    return {variable: address(config.azure.vault_url, name) for variable, name in pairs}


def _command_node(step: Step, config: Config, overrides: Sequence[str], origins: dict[str, str], code: Path) -> Job:
    inputs = {p.name: source for p in step.inputs if (source := _input(p, config, origins)) is not None}
    missing = [p.name for p in step.inputs if p.name not in inputs and not p.optional]
    if missing:
        raise UserError(f"step {step.name} needs {missing[0]}=azureml:NAME:VERSION (or a local path, to be uploaded)")
    numbers = parameters_of(step, config)
    cluster = cluster_of(step, config)
    nodes, per_node = processes(step, config)
    timeout = getattr(config.azure.timeouts, step.name, None)
    words = [
        *(f"{name}=${{{{inputs.{name}}}}}" for name in inputs),
        *(f"{p.name}=${{{{outputs.{p.name}}}}}" for p in step.outputs),
        *(f"{key}=${{{{inputs.{name}}}}}" for name, key in numbers.items()),
        *(shlex.quote(o) for o in overrides),
    ]
    node: Job = {
        "type": "command",
        "display_name": step.name,
        "description": step.summary,
        "component": {
            "type": "command",
            "name": f"objrec_{step.name}",
            "display_name": step.name,
            "is_deterministic": step.cached and step.name not in config.force,
            "inputs": {
                **{name: {"type": source.get("type", "uri_folder")} for name, source in inputs.items()},
                **{name: {"type": _number_type(lookup(config, key))} for name, key in numbers.items()},
            },
            "outputs": {p.name: {"type": f"uri_{p.kind}"} for p in step.outputs},
            "code": str(code),
            "environment": f"azureml:{config.azure.environment}:{environment_version()}",
            "command": " ".join(["python", "-m", step.module, *words]),
        },
        "compute": f"azureml:{cluster.cluster}",
        "inputs": {
            **{name: source.get("bound", source) for name, source in inputs.items()},
            **{name: f"${{{{parent.inputs.{name}}}}}" for name in numbers},
        },
        "outputs": {p.name: {"type": f"uri_{p.kind}", "mode": _mode(step, p)} for p in step.outputs},
        "resources": {"instance_count": nodes, **({"shm_size": config.azure.shm_size} if step.distributed else {})},
    }
    if per_node * nodes > 1:
        node["component"]["distribution"] = {"type": "pytorch", "process_count_per_instance": per_node}
    if timeout is not None:
        node["limits"] = {"timeout": timeout}
    if secrets := _secrets(step, config):
        node["environment_variables"] = secrets
    if not step.cached or secrets:
        node["identity"] = {"type": "managed"}
    return node


def _input(port: Port, config: Config, origins: dict[str, str]) -> Job | None:
    if port.name in origins:
        return {"type": f"uri_{port.kind}", "bound": f"${{{{parent.jobs.{origins[port.name]}.outputs.{port.name}}}}}"}
    given = _given(config, port)
    if given is None:
        return None
    key = port.config or port.name
    if given.startswith(REMOTE):
        return {"type": f"uri_{port.kind}", "path": given, "mode": "ro_mount"}
    path = Path(given)
    if not path.exists():
        raise UserError(f"{key}={given}: there is no such file or folder, and it is not a cloud address")
    kind = "uri_folder" if path.is_dir() else "uri_file"
    return {"type": kind, "path": str(path.resolve()), "mode": "ro_mount"}


def _given(config: Config, port: Port) -> str | None:
    if port.name == "raw_data_dir" and config.azure.data is not None:
        return config.azure.data
    value = lookup(config, port.config or port.name)
    return None if value is None else str(value)


def _mode(step: Step, port: Port) -> str:
    """Checkpoints must be there when a node is taken away: only a mount writes them through as they come."""
    return "rw_mount" if step.resumes and port.kind == "folder" else "upload"


def _number_type(value: Any) -> str:
    return "integer" if isinstance(value, int) else "number"


def _swept(request: JobRequest) -> list[str]:
    return [d.input for d in request.space.dimensions] if request.space else []
