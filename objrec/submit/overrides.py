"""Which of the user's overrides each step of a cloud job is given.

A step's command line is part of what the platform compares when it decides on reuse, so a step gets only what bears
on the keys that it reads; that these then have the values of the whole configuration is checked, not hoped for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from objrec.config.errors import UserError
from objrec.config.load import dump, load_config
from objrec.config.quoting import PATH_KEYS
from objrec.config.schema import Config
from objrec.runner.runner import CONTROL
from objrec.steps.base import Step, lookup

# The studio shows these as fields of the job. Name of the pipeline input -> config key.
PARAMETERS = {
    "num_images": "ingest.num_images",
    "image_size": "preprocess.image_size",
    "max_epochs": "train.max_epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "momentum": "train.momentum",
}
# What steers submission, or is a local path, and means nothing to a step in the cloud.
HERE_ONLY = ("azure", "sweep", "hydra", "runs_dir", "cache_dir", "registry_dir", "serve", "deploy.target", *CONTROL)
BUT = ("azure.endpoint", "azure.model_name", "azure.retries", "azure.timeout")  # which deploy reads there
GLOBAL_GROUPS = ("experiment", "debug")  # a file there may set any key
SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password)$")


def key_of(override: str) -> str:
    """Return the key or group of an override as typed."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[0]


def parameters_of(step: Step, config: Config) -> dict[str, str]:
    """Return the pipeline inputs that a step takes, name -> config key; a null is no input."""
    return {
        name: key for name, key in PARAMETERS.items() if _covered(key, step.reads) and lookup(config, key) is not None
    }


def port_keys(steps: Sequence[Step]) -> set[str]:
    """Return the config keys that hold a path of an input or output."""
    return {p.config or p.name for s in steps for p in (*s.inputs, *s.outputs)}


def share_out(
    steps: Sequence[Step], config: Config, overrides: Sequence[str], additions: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Return the overrides of each step, by its name.

    Args:
        additions: by step: what submission itself adds; it wins over what the user gave.

    Raises:
        UserError: for what cannot or must not travel: a secret, a file of this machine that no step takes as an input.
    """
    ports = port_keys(steps)
    _refuse(config, overrides, ports)
    passed = [o for o in overrides if _travels(key_of(o)) and key_of(o) not in ports]
    given = {k: "elsewhere" for k in sorted(ports) if "." in k and lookup(config, k) is not None}
    return {s.name: _for_step(s, overrides, passed, list(additions.get(s.name, ())), given) for s in steps}


def _for_step(
    step: Step, overrides: Sequence[str], passed: Sequence[str], added: list[str], given: Mapping[str, str]
) -> list[str]:
    """Choose the fewest overrides that give the step what the whole configuration holds for it."""
    expected = _composed((*overrides, *added))
    bound = {*parameters_of(step, expected).values(), *(key_of(o) for o in added)}
    free = [o for o in passed if key_of(o) not in bound]
    near = [o for o in free if _related(key_of(o), step.reads) or key_of(o) in GLOBAL_GROUPS]
    here = [f"{k}={v}" for k, v in given.items()]  # another step's input: some rules ask that it has a value
    for chosen in (near, [*near, *here], free, [*free, *here]):
        if _same(step, expected, [*chosen, *added]):
            return [*chosen, *added]
    raise AssertionError(f"step {step.name} would see another configuration in the cloud with {free}")


def _same(step: Step, expected: Config, overrides: Sequence[str]) -> bool:
    values = [f"{key}={lookup(expected, key)}" for key in parameters_of(step, expected).values()]
    own = {p.config for p in step.inputs if p.config is not None}
    inputs = [f"{key}=bound" for key in sorted(own) if lookup(expected, key) is not None]
    try:
        seen = _composed((*overrides, *values, *inputs))
    except UserError:
        return False
    return _read_by(step, seen, own) == _read_by(step, expected, own)


@lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...]) -> Config:
    """Compose once what several steps ask for: a composition takes a tenth of a second."""
    return load_config(overrides, effects=False)  # the whole was checked


def _read_by(step: Step, config: Config, without: set[str]) -> dict[str, Any]:
    return {
        k: v
        for k, v in flat(dump(config, keyed_only=True))
        if _covered(k, step.reads) and not _related(k, without) and _travels(k)
    }


def _refuse(config: Config, overrides: Sequence[str], ports: set[str]) -> None:
    """Raise UserError for what cannot or must not travel, all at once and without telling a secret."""
    problems = [
        f"{o.split('=')[0]}: a folder of configs does not travel with the job: put its files into configs/"
        for o in overrides
        if o.startswith("--config-dir")
    ]
    for key, value in flat(_plain(config)):
        if value is None:
            continue
        if SECRET_NAME.search(key.rpartition(".")[2]) and not key.startswith("azure."):
            problems.append(
                f"{key}: a secret would be stored in the job's definition: leave it out (the cloud endpoint has "
                "keys of its own; a source's key goes through a vault, see azure.secrets)"
            )
        elif key in PATH_KEYS and key not in ports and not _related(key, HERE_ONLY):
            problems.append(f"{key}={value}: local files are not sent with the job")
    if problems:
        raise UserError(problems)


def _plain(config: Config) -> dict[str, Any]:
    """Unmasked values, for looking at only."""
    return config.model_dump(by_alias=True)


def flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for the leaves of nested dictionaries."""
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, data


def _travels(key: str) -> bool:
    return not _related(key, HERE_ONLY) or _related(key, BUT)


def _covered(key: str, keys: Sequence[str] | set[str]) -> bool:
    return any(key == k or key.startswith(f"{k}.") for k in keys)


def _related(key: str, keys: Sequence[str] | set[str]) -> bool:
    """Whether ``key`` is one of ``keys``, or inside or around one."""
    return any(key == k or key.startswith(f"{k}.") or k.startswith(f"{key}.") for k in keys)
