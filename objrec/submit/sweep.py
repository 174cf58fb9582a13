"""Sweeps: what Hydra's multirun varies here, an Azure sweep varies there, from the same file and the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from objrec.config.compose import config_dir, quote_path, register_resolvers
from objrec.config.errors import UserError
from objrec.config.schema import Config
from objrec.submit.overrides import PARAMETERS

EARLY_TERMINATION: dict[str, dict[str, Any]] = {
    "median": {"type": "median_stopping"},
    "bandit": {"type": "bandit", "slack_factor": 0.1},
    "truncation": {"type": "truncation_selection", "truncation_percentage": 20},
}


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A key that is varied: ``distribution`` in Azure ML's words, ``input`` the name of the component's input."""

    key: str
    input: str
    distribution: dict[str, Any]

    @property
    def type(self) -> str:
        values = self.distribution.get("values")
        if values is None:
            return "number"
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return "integer"
        return "number" if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) else "string"


@dataclass(frozen=True)
class Space:
    dimensions: tuple[Dimension, ...]


def split_swept(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (plain overrides, those with several values)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    plain: list[str] = []
    swept: list[str] = []
    for text in overrides:
        try:
            several = not text.startswith("--") and parser.parse_override(text).is_sweep_override()
        except Exception:  # load_config tells what is wrong with it
            several = False
        (swept if several else plain).append(text)
    return plain, swept


def read_space(overrides: Sequence[str], swept: Sequence[str], config: Config) -> Space | None:
    """Return what ``hydra.sweeper.params`` and the command line vary; None for a plain run.

    Raises:
        UserError: a distribution that Azure ML lacks for the algorithm.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed = {o.split("=", 1)[0] for o in overrides}  # as with Hydra's sweeper, a value given on the command line wins
    params = {k: v for k, v in _file_params(overrides).items() if k not in fixed}
    params |= dict(o.split("=", 1) for o in swept)
    if not params:
        return None
    parser = OverridesParser.create()
    problems, dimensions = [], []
    for key, text in params.items():
        try:
            value = parser.parse_override(f"{key}={text}").value()
            distribution = _distribution(value, config.sweep.algorithm)
        except UserError as error:
            problems += [f"{key}={text}: {m}" for m in error.messages]
            continue
        except Exception as error:
            raise UserError(f"{key}={text}: cannot be read ({str(error).splitlines()[0]})") from None
        names = {v: k for k, v in PARAMETERS.items()}
        dimensions.append(Dimension(key=key, input=names.get(key, key.replace(".", "_")), distribution=distribution))
    if problems:
        raise UserError(problems)
    return Space(tuple(dimensions))


def _file_params(overrides: Sequence[str]) -> dict[str, str]:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if not any(o.startswith("sweep=") for o in overrides):
        return {}
    register_resolvers()
    GlobalHydra.instance().clear()
    plain = [quote_path(o) for o in overrides if not o.startswith("--")]
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("config", overrides=plain, return_hydra_config=True)
    return {str(k): str(v) for k, v in (composed.hydra.sweeper.get("params") or {}).items()}


def _distribution(value: Any, algorithm: str) -> dict[str, Any]:
    """Translate Hydra's ``choice``, ``range`` and ``interval``."""
    kind = type(value).__name__
    if kind == "ChoiceSweep":
        return {"type": "choice", "values": list(value.list)}
    if kind == "RangeSweep":
        count = max(0, math.ceil((value.stop - value.start) / value.step))
        values = [value.start + i * value.step for i in range(count)]
        return {"type": "choice", "values": [v if isinstance(v, int) else float(f"{v:.12g}") for v in values]}
    if kind == "IntervalSweep":
        if algorithm == "grid":
            raise UserError("a grid needs choice(...) or range(...); sweep.algorithm=random draws from an interval")
        low, high = float(value.start), float(value.end)
        if "log" not in value.tags:
            return {"type": "uniform", "min_value": low, "max_value": high}
        if low <= 0:
            raise UserError("a logarithmic interval begins above 0")
        # Azure ML gives the bounds of the exponent: exp(uniform(min, max))
        return {"type": "loguniform", "min_value": math.log(low), "max_value": math.log(high)}
    if kind in ("Glob",):
        raise UserError("glob(...) chooses files of this machine: name the values with choice(...)")
    return {"type": "choice", "values": [value]}


def sweep_node(node: dict[str, Any], space: Space, config: Config) -> dict[str, Any]:
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
