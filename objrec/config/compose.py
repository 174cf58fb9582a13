"""Find the config folder and let Hydra compose from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.schema import Config

PATH_KEYS = {
    *(f for f in Config.model_fields if f.endswith(("_dir", "_file"))),
    "source.path",
    "backbone.weights",
    "evaluate.compare",
    "evaluate.unknown_dir",
    "serve.key_file",
}


def config_dir() -> str:
    """The folder of the packaged configs: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for place in (package / "configs", package.parent / "configs"):
        if (place / "config.yaml").is_file():
            return str(place)
    raise UserError("the configs folder is missing from this installation: reinstall objrec")


def register_resolvers() -> None:
    """Register ``${objrec.or:a,b}`` (a, or b where a is null). Safe to call again."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("objrec.or", lambda a, b: b if a is None else a, replace=True)


def quote_path(override: str) -> str:
    """Quote the value of a key that takes a path, so that ``model_dir=My models (2)`` needs no Hydra grammar."""
    key, sign, value = override.partition("=")
    plain = re.fullmatch(r"[\w./\\:@%+\-~?]*", value)
    if key.lstrip("+") not in PATH_KEYS or not sign or plain or value[:1] in "'\"[{" or "$" in value:
        return override
    if "," in value and all(re.fullmatch(r"[\w./\\:@%+\-~?]+", part) for part in value.split(",")):
        return override  # a sweep over paths
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def expand_sources(overrides: Sequence[str]) -> list[str]:
    """Turn ``source=[a,b]`` into what Hydra's groups can say: ``source=several`` with each of them as a member.

    A list with a name that is no source is left as it is, for the message to show what was typed.
    """
    folders = [config_dir(), *(o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir="))]
    expanded: list[str] = []
    for override in overrides:
        found = re.fullmatch(r"source=\[(.*)\]", override)
        names = [n.strip(" '\"") for n in found.group(1).split(",")] if found else []
        if len(set(names)) == len(names) > 0 and all(
            any((Path(f) / "source" / f"{n}.yaml").is_file() for f in folders) for n in names
        ):
            expanded += (
                [f"source={names[0]}"]
                if len(names) == 1
                else [
                    "source=several",
                    *(f"+source@source.members.{n}={n}" for n in names),
                    f"source.order=[{','.join(names)}]",
                ]
            )
        else:
            expanded.append(override)
    return expanded


def compose_data(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the composed configuration as plain data, interpolations resolved. Raises what Hydra raises."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    register_resolvers()
    folders = [o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir=")]
    plain = [o for o in overrides if not o.startswith("--config-dir=")]
    if folders:
        plain.append(f"hydra.searchpath=[{','.join('file://' + str(Path(f).resolve()) for f in folders)}]")
    GlobalHydra.instance().clear()  # compose may run many times in one process: tests, sweeps, notebooks
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        composed = compose("config", overrides=plain)
    data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}
