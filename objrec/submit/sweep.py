"""Sweeps: what Hydra's multirun varies here, an Azure sweep varies there, from the same file and the same words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.config.search_space import Choice, Dimension, check_size
from objrec.submit.overrides import PARAMETERS

EARLY_TERMINATION: dict[str, dict[str, Any]] = {
    "median": {"type": "median_stopping"},
    "bandit": {"type": "bandit", "slack_factor": 0.1},
    "truncation": {"type": "truncation_selection", "truncation_percentage": 20},
}
WORD = re.compile(r"[\w./+:@%-]+")  # what stands in a command line as it is


@dataclass(frozen=True, kw_only=True)
class Input:
    """A key that is varied: ``distribution`` in Azure ML's words, ``input`` the name of the component's input."""

    key: str
    input: str
    distribution: dict[str, Any]

    @property
    def type(self) -> str:
        values = self.distribution.get("values")
        if values is None:
            return "number"
        if all(_is_number(v) and isinstance(v, int) for v in values):
            return "integer"
        return "number" if all(_is_number(v) for v in values) else "string"


@dataclass(frozen=True)
class AzureSpace:
    dimensions: tuple[Input, ...]


def azure_space(space: Mapping[str, Dimension], config: Config) -> AzureSpace | None:
    """Return what is varied in Azure ML's words; None for a plain run.

    Raises:
        UserError: a distribution or a policy that Azure ML lacks for the algorithm, a grid that would be cut short.
    """
    if not space:
        return None
    if config.sweep.algorithm == "optuna":
        raise UserError(
            "sweep.algorithm=optuna runs on your own machine: python -m objrec.train -m sweep=optuna. "
            "Azure has sweep=random (any scale, stops trials early) and sweep=bayesian (learns from trials)"
        )
    problems, dimensions = [], []
    if config.sweep.algorithm == "bayesian" and config.sweep.early_termination != "none":
        problems.append(
            f"sweep.early_termination={config.sweep.early_termination}: bayesian sampling uses complete trials "
            "only; sweep.early_termination=none"
        )
    names = {v: k for k, v in PARAMETERS.items()}
    for key, dimension in space.items():
        try:
            distribution = _distribution(dimension, config.sweep.algorithm)
        except UserError as error:
            problems += [f"{key}: {m}" for m in error.messages]
            continue
        dimensions.append(Input(key=key, input=names.get(key, key.replace(".", "_")), distribution=distribution))
    if problems:
        raise UserError(problems)
    check_size(config, space)
    return AzureSpace(tuple(dimensions))


def _distribution(dimension: Dimension, algorithm: str) -> dict[str, Any]:
    if isinstance(dimension, Choice):
        return {"type": "choice", "values": _values(dimension.values)}
    if algorithm == "grid":
        raise UserError("a grid needs choice(...) or range(...); sweep.algorithm=random draws from an interval")
    if dimension.whole:
        raise UserError("Azure ML draws no whole numbers from an interval: range(16,65)")
    low, high = dimension.low, dimension.high
    if not dimension.log:
        return {"type": "uniform", "min_value": low, "max_value": high}
    if algorithm == "bayesian":  # Azure ML: "choice, uniform and quniform" only
        raise UserError(
            "bayesian sampling has no logarithmic scale: use interval(...) alone, or sweep.algorithm=random"
        )
    # Azure ML gives the bounds of the exponent: exp(uniform(min, max))
    return {"type": "loguniform", "min_value": math.log(low), "max_value": math.log(high)}


def _values(words: Sequence[str]) -> list[Any]:
    """Return numbers as such where all are, else words that the platform can put into a command line."""
    numbers = [_number(w) for w in words]
    if None not in numbers:
        return numbers
    for word in words:
        if not WORD.fullmatch(word):
            raise UserError(f"{word!r} cannot be passed on a trial's command line: use numbers or plain words")
    return list(words)


def _number(word: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def sweep_node(node: dict[str, Any], space: AzureSpace, config: Config) -> dict[str, Any]:
    """Return the node that runs a command node's component many times; its outputs are those of the best trial."""
    trial = node["component"]
    words = [w for w in trial["command"].split(" ") if not any(_sets(w, d.key) for d in space.dimensions)]
    names = {d.input for d in space.dimensions}
    trial = {
        **trial,
        "inputs": {
            **{k: v for k, v in trial["inputs"].items() if k not in names},
            **{d.input: {"type": d.type} for d in space.dimensions},
        },
        "resources": node["resources"],
        "command": " ".join([*words, *(f"{d.key}=${{{{inputs.{d.input}}}}}" for d in space.dimensions)]),
    }
    sweep = config.sweep
    limits = {
        "max_total_trials": sweep.max_trials,
        "max_concurrent_trials": min(sweep.max_concurrent_trials, sweep.max_trials),
        **({"trial_timeout": sweep.trial_timeout} if sweep.trial_timeout else {}),
        **({"timeout": node["limits"]["timeout"]} if "limits" in node else {}),
    }
    stop = EARLY_TERMINATION.get(sweep.early_termination)
    return {
        "type": "sweep",
        "display_name": f"{node['display_name']} sweep",
        "description": node["description"],
        "trial": trial,
        "compute": node["compute"],
        "inputs": {k: v for k, v in node["inputs"].items() if k not in names},
        "outputs": node["outputs"],
        "sampling_algorithm": sweep.algorithm,
        "search_space": {d.input: d.distribution for d in space.dimensions},
        "objective": {
            "primary_metric": sweep.metric,
            "goal": "maximize" if sweep.metric.endswith("acc") else "minimize",
        },
        "limits": limits,
        **(
            {"early_termination": {**stop, "evaluation_interval": 1, "delay_evaluation": sweep.delay_epochs}}
            if stop
            else {}
        ),
    }


def _sets(word: str, key: str) -> bool:
    return word.strip("'").startswith(f"{key}=")
