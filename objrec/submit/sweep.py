"""Sweeps: what Hydra's multirun varies here, an Azure sweep varies there, from the same file and the same words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from objrec.config.compose import config_dir, quote_path, register_resolvers
from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.submit.overrides import PARAMETERS

EARLY_TERMINATION: dict[str, dict[str, Any]] = {
    "median": {"type": "median_stopping"},
    "bandit": {"type": "bandit", "slack_factor": 0.1},
    "truncation": {"type": "truncation_selection", "truncation_percentage": 20},
}
WORD = re.compile(r"[\w./+:@%-]+")  # what stands in a command line as it is


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
        if all(_is_number(v) and isinstance(v, int) for v in values):
            return "integer"
        return "number" if all(_is_number(v) for v in values) else "string"

    def samples(self) -> list[Any]:
        """Return values that a trial may be given: those of a choice, those next to the ends of an interval."""
        if "values" in self.distribution:
            values: list[Any] = self.distribution["values"]
            return values[:15] + values[15:][-1:]  # not all of a long range: composing each takes a tenth of a second
        low, high = self.distribution["min_value"], self.distribution["max_value"]
        points = [low + (high - low) * share for share in (1e-6, 1 - 1e-6)]
        return [math.exp(p) for p in points] if self.distribution["type"] == "loguniform" else points


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
        UserError: a distribution or a policy that Azure ML lacks for the algorithm, a value that no trial could take.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed = {o.split("=", 1)[0] for o in overrides}  # as with Hydra's sweeper, a value given on the command line wins
    params = {k: v for k, v in _file_params(overrides).items() if k not in fixed}
    params |= dict(o.split("=", 1) for o in swept)
    if not params:
        return None
    if config.sweep.algorithm == "optuna":
        raise UserError(
            "sweep.algorithm=optuna runs on your own machine: python -m objrec.train -m sweep=optuna. "
            "Azure has sweep=random (any scale, stops trials early) and sweep=bayesian (learns from trials)"
        )
    parser = OverridesParser.create()
    problems, dimensions = [], []
    if config.sweep.algorithm == "bayesian" and config.sweep.early_termination != "none":
        problems.append(
            f"sweep.early_termination={config.sweep.early_termination}: bayesian sampling uses complete trials "
            "only; sweep.early_termination=none"
        )
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
    problems = problems or _refused(overrides, dimensions)
    if problems:
        raise UserError(problems)
    return Space(tuple(dimensions))


def _refused(overrides: Sequence[str], dimensions: Sequence[Dimension]) -> list[str]:
    """Return what stands against any value: a node that starts to learn of it costs money."""
    first = {d.key: d.samples()[0] for d in dimensions if d.samples()}
    problems: list[str] = []
    for trial in (first, *({**first, d.key: v} for d in dimensions for v in d.samples()[1:])):
        try:
            load_config([*overrides, *(f"{k}={v}" for k, v in trial.items())])
        except UserError as error:
            problems += [m for m in error.messages if m not in problems]
    return problems


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
        return {"type": "choice", "values": _values(value.list)}
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
        if algorithm == "bayesian":  # Azure ML: "choice, uniform and quniform" only
            raise UserError(
                "bayesian sampling has no logarithmic scale: use interval(...) alone, or sweep.algorithm=random"
            )
        if low <= 0:
            raise UserError("a logarithmic interval should start above 0")
        # Azure ML gives the bounds of the exponent: exp(uniform(min, max))
        return {"type": "loguniform", "min_value": math.log(low), "max_value": math.log(high)}
    if kind in ("Glob",):
        raise UserError("glob(...) matches local files: list the values with choice(...)")
    return {"type": "choice", "values": _values([value])}


def _values(values: Sequence[Any]) -> list[Any]:
    """Return numbers as they are, all else as words that the platform can put into a command line."""
    if all(_is_number(v) for v in values):
        return list(values)
    words = ["null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    for word in words:
        if not WORD.fullmatch(word):
            raise UserError(f"{word!r} cannot be passed on a trial's command line: use numbers or plain words")
    return words


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
