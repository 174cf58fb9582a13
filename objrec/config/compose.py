"""Find the config folder and let Hydra compose from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError


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


def config_folders(overrides: Sequence[str]) -> list[str]:
    """Return the folders of ``--config-dir`` among the overrides. Raises UserError for one that is not there."""
    folders = [o.split("=", 1)[1] for o in overrides if o.startswith("--config-dir=")]
    if missing := [f for f in folders if not Path(f).expanduser().is_dir()]:
        raise UserError([f"--config-dir={f}: there is no such folder" for f in missing])
    return [str(Path(f).expanduser().resolve()) for f in folders]


def group_options(group: str, overrides: Sequence[str]) -> list[str] | None:
    """Return the names of the files in a config group, or None where there is no such group."""
    places = [config_dir(), *config_folders(overrides)]
    folders = [Path(p) / group for p in places if (Path(p) / group).is_dir()]
    return sorted({f.stem for folder in folders for f in folder.glob("*.yaml")}) if folders else None


def expand_sources(overrides: Sequence[str]) -> list[str]:
    """Turn ``source=[a,b]`` into what Hydra's groups can say: ``source=several`` with each of them as a member.

    A list with a name that is no source is left as it is, for the message to show what was typed.
    """
    folders = [config_dir(), *config_folders(overrides)]
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


def compose_node(overrides: Sequence[str], *, hydra: bool = False) -> Any:
    """Return the composed configuration as OmegaConf's node, with Hydra's own settings on request.

    Raises what Hydra raises.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    folders = config_folders(overrides)
    overrides = expand_sources(overrides)
    plain = [o for o in overrides if not o.startswith("--config-dir=")]
    if folders:
        plain.append("hydra.searchpath=[" + ",".join(f"'file://{quote_text(f)}'" for f in folders) + "]")
    GlobalHydra.instance().clear()  # compose may run many times in one process: tests, sweeps, notebooks
    with initialize_config_dir(config_dir=config_dir(), version_base="1.3"):
        return compose("config", overrides=plain, return_hydra_config=hydra)


def quote_text(text: str) -> str:
    """Return text as it stands between single quotes in Hydra's grammar."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


def to_data(node: Any) -> dict[str, Any]:
    """Return plain data of a composed configuration, interpolations resolved."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def compose_data(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the composed configuration as plain data. Raises what Hydra raises."""
    return to_data(compose_node(overrides))
