"""A job in a few lines: what runs where, on which command lines, what is reused, what it can cost at most."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from objrec.config.schema import Config
from objrec.submit.checks import TEMPLATE

MEMORY = "azure.json"  # under the cache: the definitions of the last job that was submitted


def fingerprints(job: Mapping[str, Any], code: str) -> dict[str, str]:
    """Return for each step a hash of all that the platform compares: definition, code, values, and what feeds it."""
    found: dict[str, str] = {}
    values = {f"parent.inputs.{n}": v for n, v in job["inputs"].items()}
    for name, node in job["jobs"].items():
        component = node.get("component") or node["trial"]
        said = {k: v for k, v in component.items() if k != "code"}
        bound = {}
        for port, value in node["inputs"].items():
            for expression in TEMPLATE.findall(value) if isinstance(value, str) else []:
                parts = expression.split(".")
                value = values.get(expression, f"{found.get(parts[2], '')}.{parts[-1]}")
            bound[port] = value
        sweep = {k: node.get(k) for k in ("search_space", "objective", "sampling_algorithm")}
        text = json.dumps([code, said, bound, sweep], sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def reuse(job: Mapping[str, Any], marks: Mapping[str, str], last: Mapping[str, Any]) -> dict[str, str]:
    """Say for each step whether the platform can reuse the last job's output, and why not."""
    known = last.get("steps", {})
    reasons = {}
    for name, node in job["jobs"].items():
        component = node.get("component") or node["trial"]
        if job["settings"]["force_rerun"] or not component["is_deterministic"]:
            reasons[name] = "always runs"
        elif name not in known:
            reasons[name] = "runs: not submitted from here before"
        elif known[name] == marks[name]:
            reasons[name] = f"reused, if {last.get('name', 'the last job')} has completed it"
        elif last.get("code") != marks.get("code"):
            reasons[name] = "runs: the code changed"
        else:
            reasons[name] = "runs: its settings or what feeds it changed"
    return reasons


def describe(job: Mapping[str, Any], config: Config, *, reused: Mapping[str, str], files: Sequence[Path]) -> str:
    """Return the summary as text."""
    size = sum(p.stat().st_size for p in files)
    lines = [f"{job['display_name']}: {len(job['jobs'])} steps, experiment {job['experiment_name']}", ""]
    for name, node in job["jobs"].items():
        component = node.get("component") or node["trial"]
        cluster = _cluster(node, config)
        nodes = _nodes(node)
        where = f"{cluster.cluster} ({nodes} x {cluster.size}, {cluster.tier.replace('_', ' ')})"
        limit = node.get("limits", {}).get("timeout")
        lines += [
            f"{name}  on {where}, {f'at most {_hours(limit)}' if limit else 'no time limit'}",
            f"    {reused[name]}",
        ]
        lines += [f"    {name} <- {_told(value)}" for name, value in node["inputs"].items() if _is_data(value)]
        if "search_space" in node:
            lines += [f"    varies {k}: {_space(v)}" for k, v in node["search_space"].items()]
            lines.append(f"    {node['limits']['max_total_trials']} trials at most, {node['sampling_algorithm']}")
        lines += [f"    $ {component['command']}", ""]
    values = ", ".join(f"{n}={v}" for n, v in job["inputs"].items())
    lines += [f"inputs      {values or 'none'} (fields of the job in the studio)"]
    lines += [f"environment {next(iter(_components(job)))['environment'].removeprefix('azureml:')}"]
    lines += [f"code        {len(files)} files, {size / 1000:.0f} kB"]
    lines += [f"at most     {bound(job, config)}"]
    return "\n".join(lines)


def bound(job: Mapping[str, Any], config: Config) -> str:
    """Return an upper bound of the node-hours by size, or why there is none."""
    hours: dict[str, float] = {}
    unlimited = []
    for name, node in job["jobs"].items():
        limit = node.get("limits", {}).get("timeout")
        if limit is None:
            unlimited.append(name)
            continue
        cluster = _cluster(node, config)
        nodes = _nodes(node)
        nodes *= min(node.get("limits", {}).get("max_concurrent_trials", 1), max(1, cluster.max_nodes // nodes))
        hours[cluster.size] = hours.get(cluster.size, 0) + nodes * limit / 3600
    said = " + ".join(f"{h:g} node-hours of {size}" for size, h in hours.items())
    if unlimited:
        return f"no bound: azure.timeouts.{unlimited[0]} is not set"
    return f"{said}, and the idle time before a node is given back"


def _components(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [node.get("component") or node["trial"] for node in job["jobs"].values()]


def _cluster(node: Mapping[str, Any], config: Config) -> Any:
    name = node["compute"].removeprefix("azureml:")
    return config.azure.gpu if name == config.azure.gpu.cluster else config.azure.cpu


def _nodes(node: Mapping[str, Any]) -> int:
    return int((node.get("resources") or node["trial"]["resources"])["instance_count"])


def _is_data(value: Any) -> bool:
    return not (isinstance(value, str) and "parent.inputs." in value)


def _told(value: Any) -> str:
    if isinstance(value, str):
        return value.removeprefix("${{parent.jobs.").removesuffix("}}").replace(".outputs.", ".")
    return str(value["path"])


def _space(space: Mapping[str, Any]) -> str:
    if space["type"] == "choice":
        return ", ".join(map(str, space["values"]))
    low, high = space["min_value"], space["max_value"]
    if space["type"] == "loguniform":  # the bounds are of the exponent
        return f"{math.exp(low):.4g} to {math.exp(high):.4g}, evenly on a logarithmic scale"
    return f"{low:.4g} to {high:.4g}, evenly"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
