"""What the SDK lets through and the service would refuse, or obey to our harm, after the upload."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TEMPLATE = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
JOB_OUTPUT = re.compile(r"parent\.jobs\.(\w+)\.outputs\.(\w+)$")
NODE_NAME = re.compile(r"[a-z][a-z0-9_]{0,254}$")


def check_job(job: Mapping[str, Any], clusters: Mapping[str, int]) -> list[str]:
    """Return what is wrong with a pipeline job as ``build_job`` gives it; empty when all is well.

    Args:
        clusters: the known compute targets and their largest number of nodes.
    """
    problems = []
    for name, node in job["jobs"].items():
        problems += [f"{name}: {p}" for p in _check_node(name, node, job, clusters)]
    if cycle := _cycle(job["jobs"]):
        problems.append(f"the steps form a cycle: {' -> '.join(cycle)}")
    return problems


def _check_node(
    name: str, node: Mapping[str, Any], job: Mapping[str, Any], clusters: Mapping[str, int]
) -> Iterator[str]:
    component = node.get("component") or node.get("trial") or {}
    if not NODE_NAME.match(name):
        yield f"'{name}' is not a valid node name: use lower-case letters, digits and _"
    yield from _check_template(node, component)
    for port, value in node.get("inputs", {}).items():
        yield from _check_binding(port, value, job)
    bound = {*node.get("inputs", {}), *node.get("search_space", {})}
    for port in component.get("inputs", {}):
        if port not in bound:
            yield f"the input '{port}' is not bound"
    for port in sorted(bound - set(component.get("inputs", {}))):
        yield f"'{port}' is bound, but the component has no such input"
    yield from _check_limits(node)
    yield from _check_compute(node, component, clusters)
    yield from _check_search(node)


def _check_template(node: Mapping[str, Any], component: Mapping[str, Any]) -> Iterator[str]:
    legal = {
        *(f"inputs.{n}" for n in component.get("inputs", {})),
        *(f"outputs.{n}" for n in component.get("outputs", {})),
    }
    used = set(TEMPLATE.findall(component.get("command", "")))
    for expression in sorted(used - legal):
        yield f"the command uses ${{{{{expression}}}}}, which is not declared"
    for name in component.get("outputs", {}):
        if f"outputs.{name}" not in used:
            yield f"nothing writes the output '{name}'"


def _check_binding(port: str, value: Any, job: Mapping[str, Any]) -> Iterator[str]:
    match = TEMPLATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return
    expression = match[1]
    if expression.startswith("parent.inputs."):
        if expression.removeprefix("parent.inputs.") not in job.get("inputs", {}):
            yield f"'{port}' takes {expression}, and the pipeline has no such input"
        return
    found = JOB_OUTPUT.match(expression)
    source = job["jobs"].get(found[1]) if found else None
    if found is None or source is None:
        yield f"'{port}' takes {expression}, and there is no such step"
    elif found[2] not in source.get("outputs", {}):
        yield f"'{port}' takes {expression}, and '{found[1]}' has no such output"


def _resources(node: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = node.get("resources") or node.get("trial", {}).get("resources") or {}
    return found


def _check_limits(node: Mapping[str, Any]) -> Iterator[str]:
    for key, value in node.get("limits", {}).items():
        if value <= 0:
            yield f"limits.{key}={value} is not above 0"
    resources = _resources(node)
    if resources.get("instance_count", 1) < 1:
        yield f"instance_count={resources['instance_count']} is not above 0"


def _check_compute(node: Mapping[str, Any], component: Mapping[str, Any], clusters: Mapping[str, int]) -> Iterator[str]:
    name = str(node.get("compute", "")).removeprefix("azureml:")
    if name not in clusters:
        yield f"runs on '{name}', which is none of {', '.join(sorted(clusters))}"
        return
    nodes = _resources(node).get("instance_count", 1)
    if nodes > clusters[name]:
        yield f"wants {nodes} nodes of '{name}', which has at most {clusters[name]}: it would never start"
    if nodes > 1 and "distribution" not in component:
        yield f"runs on {nodes} nodes without a distribution: each node would do all the work"


def _check_search(node: Mapping[str, Any]) -> Iterator[str]:
    limits = node.get("limits", {})
    if node.get("type") != "sweep":
        return
    if limits.get("max_concurrent_trials", 1) > limits.get("max_total_trials", 1):
        yield "more parallel trials than trials"
    for name, space in node["search_space"].items():
        if space["type"] == "choice" and not space["values"]:
            yield f"'{name}' has nothing to choose from"
        if "min_value" in space and not space["min_value"] < space["max_value"]:
            yield f"'{name}' has an empty interval"
        if node["sampling_algorithm"] == "grid" and space["type"] != "choice":
            yield f"'{name}' is an interval: a grid needs values to choose from"


def _cycle(nodes: Mapping[str, Any]) -> list[str]:
    """Return the names of a circle, first one repeated at its end; empty when there is none."""
    needs = {n: sorted(_sources(node)) for n, node in nodes.items()}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done or name not in needs:
            return []
        for other in needs[name]:
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in needs if (found := visit(name, []))), [])


def _sources(node: Mapping[str, Any]) -> set[str]:
    texts = [v for v in node.get("inputs", {}).values() if isinstance(v, str)]
    return {m[1] for t in texts for e in TEMPLATE.findall(t) if (m := JOB_OUTPUT.match(e))}
