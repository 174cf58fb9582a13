"""The names of timm's models, read from its source: importing it takes seconds."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from objrec.config.errors import did_you_mean

MODEL = re.compile(r"^@register_model\b[^\n]*\ndef (\w+)\(", re.MULTILINE)
RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.MULTILINE | re.DOTALL)
STEM = re.compile(r"^        self\.stem\b", re.MULTILINE)
PATCHES = re.compile(r"^        self\.patch_embed\b", re.MULTILINE)
KEY = re.compile(r"^\s*['\"]([\w.-]+)['\"]\s*:", re.MULTILINE)
OWN = Path(__file__).parents[1] / "models" / "cifar_net.py"
ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:", "timm/")  # names that timm resolves by other means


def name_problem(name: str) -> str | None:
    """Return why ``name``, with or without the tag of its weights, is no model of timm; None where it is one."""
    if name.startswith(ELSEWHERE):
        return None
    models = model_names()
    if not models:
        return None  # timm is not installed here: a machine that only submits jobs
    architecture, _, tag = name.partition(".")
    if architecture not in models:
        plain = {m.replace("_", ""): m for m in sorted(models)}
        near = plain.get(re.sub(r"[_\W]", "", name).lower())
        hint = f" Did you mean '{near}'?" if near else did_you_mean(name, models)
        return f"backbone.name={name}: timm has no such model.{hint}"
    if not tag or architecture in _renamed():
        return None
    tagged = tagged_names()
    built = f"{tag}'" in _source() or f'{tag}"' in _source()  # some names are put together by a function of timm
    if name not in tagged and not built:
        tags = sorted(n for n in tagged if n.startswith(f"{architecture}."))
        close = difflib.get_close_matches(name, tags, n=1, cutoff=0.8)
        hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(tags) or 'none'}"
        return f"backbone.name={name}: timm has no weights of this tag. {hint}"
    return None


def has_patch_embedding(name: str) -> bool:
    """Whether ``name`` surely cuts images into patches: timm's file that defines it has such models and no stems."""
    architecture = name.partition(".")[0]
    return any(
        PATCHES.search(source) and not STEM.search(source) and architecture in MODEL.findall(source)
        for source in _sources()
    )


@lru_cache(1)
def model_names() -> frozenset[str]:
    """Return the names of models, old ones too; empty without timm."""
    return frozenset(MODEL.findall(_source())) | _renamed() if _source() else frozenset()


@lru_cache(1)
def tagged_names() -> frozenset[str]:
    """Return ``model.tag`` for all weights that timm's files list."""
    return frozenset(k for k in KEY.findall(_source()) if "." in k and k.partition(".")[0] in model_names())


@lru_cache(1)
def _renamed() -> frozenset[str]:
    """Old names that timm still takes."""
    return frozenset(k for block in RENAMED.findall(_source()) for k in KEY.findall(block))


def _source() -> str:
    return "\n".join(_sources())


@lru_cache(1)
def _sources() -> tuple[str, ...]:
    """The text of each file that defines models; none without timm."""
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return ()
    files = [*sorted((Path(spec.origin).parent / "models").glob("*.py")), OWN]
    return tuple(f.read_text(encoding="utf-8") for f in files)
