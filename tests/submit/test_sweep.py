"""Sweep jobs as the real SDK reads and sends them, and what a trial makes of the values that it is given."""

from __future__ import annotations

import math
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.azure import QUICK, ROOT
from helpers.azure_stand_in import StandIn

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.config.schema import Config
from objrec.submit.command import run

HERE_ONLY = {"optuna"}  # algorithms that Azure has not
FILES = sorted({p.stem for p in (ROOT / "configs" / "sweep").glob("*.yaml")} - HERE_ONLY)
MEDIAN = {"policy_type": "MedianStopping", "evaluation_interval": 1, "delay_evaluation": 3}
POLICIES = {"grid": None, "random": MEDIAN, "bayesian": None}


def submit(azure: StandIn, *overrides: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what the workspace was sent: the job, its sweep node, and the trial's component."""
    assert run([*QUICK, *overrides]) == 0
    (call,) = azure.sent("PUT", "jobs/")
    job = call.body["properties"]
    node = job["jobs"]["train"]
    return job, node, azure.resources[node["trial"]["componentId"]]["properties"]["componentSpec"]


def varied(name: str) -> dict[str, str]:
    """Return key -> Hydra's words, read from the file and those that it builds on."""
    content = yaml.safe_load((ROOT / "configs" / "sweep" / f"{name}.yaml").read_text())
    found: dict[str, str] = {}
    for base in content.get("defaults", []):
        found |= content["hydra"]["sweeper"]["params"] if base == "_self_" else varied(base)
    return found or content["hydra"]["sweeper"]["params"]


def in_azures_words(text: str) -> dict[str, Any]:
    if match := re.fullmatch(r"choice\((.*)\)", text):
        return {"type": "choice", "values": yaml.safe_load(f"[{match[1].replace(',', ', ')}]")}
    match = re.fullmatch(r"(tag\(log, )?interval\(([\d.]+), ([\d.]+)\)\)?", text)
    assert match is not None, text
    low, high = float(match[2]), float(match[3])
    if match[1]:  # the service draws exp(uniform(min, max))
        return {"type": "loguniform", "min_value": math.log(low), "max_value": math.log(high)}
    return {"type": "uniform", "min_value": low, "max_value": high}


def placeholders(command: str) -> dict[str, str]:
    """Return config key -> name of the input whose value the platform puts in."""
    return dict(re.findall(r"(?:^| )([\w.]+)=\$\{\{inputs\.(\w+)\}\}", command))


def sample(distribution: dict[str, Any], share: float) -> Any:
    if distribution["type"] == "choice":
        return distribution["values"][int(share * len(distribution["values"]))]
    low, high = distribution["min_value"], distribution["max_value"]
    drawn = low + share * (high - low)
    return math.exp(drawn) if distribution["type"] == "loguniform" else drawn


def trial(job: dict[str, Any], node: dict[str, Any], spec: dict[str, Any], drawn: dict[str, Any]) -> Config:
    """Compose what a trial's command line says, its placeholders filled as the platform does."""
    values = {name: f"/mnt/{name}" for name in (*node["inputs"], *spec["outputs"])}
    for name, bound in node["inputs"].items():
        if match := re.fullmatch(r"\$\{\{parent\.inputs\.(\w+)\}\}", bound["value"]):
            values[name] = str(job["inputs"][match[1]]["value"])
    assert not drawn.keys() & node["inputs"].keys()  # or a fixed value would stand against the drawn one
    values |= {name: str(value) for name, value in drawn.items()}
    line = re.sub(r"\$\{\{(?:inputs|outputs)\.(\w+)\}\}", lambda m: values[m[1]], spec["command"])
    python, module, name, *overrides = shlex.split(line)
    assert (python, module, name) == ("python", "-m", "objrec.steps.train")
    return load_config(overrides)


def value_of(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_sweep_file_reaches_the_workspace(azure: StandIn, workdir: Path, name: str) -> None:
    job, node, spec = submit(azure, f"sweep={name}")
    assert list(job["jobs"]) == ["ingest", "preprocess", "train", "evaluate"]  # trials are compared, not deployed
    assert job["jobs"]["evaluate"]["inputs"]["model_dir"]["value"] == "${{parent.jobs.train.outputs.model_dir}}"
    config = load_config([f"sweep={name}"])
    assert node["type"] == "sweep"
    assert node["sampling_algorithm"] == name
    assert node["objective"] == {"goal": "maximize", "primary_metric": "val/acc"}
    assert node.get("early_termination") == POLICIES[name]
    assert node["limits"] == {
        "max_total_trials": config.sweep.max_trials,
        "max_concurrent_trials": config.sweep.max_concurrent_trials,
        "timeout": config.azure.timeouts.train,
    }
    inputs = placeholders(spec["command"])
    space = {key: in_azures_words(text) for key, text in varied(name).items()}
    assert {key: node["search_space"][inputs[key]] for key in space} == space
    assert len(node["search_space"]) == len(space)
    for port, distribution in node["search_space"].items():
        whole = all(isinstance(v, int) for v in distribution.get("values", [0.5]))
        assert spec["inputs"][port] == {"type": "integer" if whole else "number"}

    with warnings.catch_warnings(action="ignore"):  # the SDK is not ready for its own dependencies' next versions
        from azure.ai.ml import load_job

        (place,) = Path("runs/azure").glob("*/job.yaml")
        told = load_job(place)._validate()
    assert told.passed, told.error_messages

    for share in (0.0, 0.6):
        drawn = {i: sample(d, share) for i, d in node["search_space"].items()}
        composed = trial(job, node, spec, drawn)
        assert {k: value_of(composed, k) for k in space} == {k: drawn[inputs[k]] for k in space}
        assert composed.optimizer["lr"] == drawn["learning_rate"]
        assert composed.train.max_epochs == config.train.max_epochs


@pytest.mark.parametrize(
    ("policy", "sent"),
    [
        ("bandit", {"policy_type": "Bandit", "slack_factor": 0.1}),
        ("truncation", {"policy_type": "TruncationSelection", "truncation_percentage": 20}),
    ],
)
def test_what_the_command_line_says_of_a_sweep(azure: StandIn, policy: str, sent: dict[str, Any]) -> None:
    _, node, spec = submitted = submit(
        azure,
        "sweep=random",
        "sweep.metric=val/loss",
        f"sweep.early_termination={policy}",
        "sweep.delay_epochs=5",
        "sweep.trial_timeout=900",
        "sweep.max_trials=3",
        "sweep.max_concurrent_trials=8",
        "azure.timeouts.train=7200",
        "optimizer=sgd,adamw",
        "train.label_smoothing=0.0,0.1",
        "train.batch_size=64",
        "train.limit_batches=null,5",
    )
    assert node["objective"] == {"goal": "minimize", "primary_metric": "val/loss"}
    assert node["early_termination"] == {**sent, "evaluation_interval": 1, "delay_evaluation": 5}
    assert node["limits"] == {
        "max_total_trials": 3,
        "max_concurrent_trials": 3,
        "trial_timeout": 900,
        "timeout": 7200,
    }
    assert set(node["search_space"]) == {"learning_rate", "optimizer", "train_label_smoothing", "train_limit_batches"}
    assert node["search_space"]["optimizer"] == {"type": "choice", "values": ["sgd", "adamw"]}
    drawn = {
        "learning_rate": 3.1e-05,
        "optimizer": "adamw",
        "train_label_smoothing": 0.1,
        "train_limit_batches": "null",
    }
    composed = trial(*submitted, drawn)
    assert composed.optimizer["_target_"].endswith("AdamW")
    assert composed.optimizer["lr"] == 3.1e-05
    assert (composed.train.label_smoothing, composed.train.limit_batches, composed.train.batch_size) == (0.1, None, 64)
    assert spec["inputs"]["train_limit_batches"] == {"type": "string"}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sweep=bayesian", "train.learning_rate=tag(log, interval(0.01, 0.1))"], "has no logarithmic scale"),
        (["sweep=bayesian", "sweep.early_termination=median"], "sweep.early_termination=none"),
        (["sweep=optuna"], "Azure has sweep=random"),
        (["train.momentm=0.8,0.9"], "Did you mean 'train.momentum'"),
        (["train.learning_rate=0.1,-1"], "train.learning_rate=-1"),
        (["sweep=random", "train.batch_size=interval(16,64)"], "got 16.0"),
        (["optimizer=sgd,adamm"], "adamm"),
        (["optimizer.betas=[0.9,0.99],[0.8,0.9]", "optimizer=adamw"], "cannot be passed on a trial's command line"),
    ],
)
def test_what_no_trial_could_run_is_refused_before_submission(workdir: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        run(["dry_run=true", *overrides])
    assert not Path("runs").exists()
