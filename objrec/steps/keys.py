"""A step's cache key: the config it reads, its inputs' content, its source files, the libraries that shape it.

Source files are the modules that a step imports, directly or not, and the templates and other files beside a module
whose names are string constants in it.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from objrec.config.load import dump
from objrec.config.schema import Config
from objrec.steps.base import Step
from objrec.system.files import write_atomically
from objrec.system.reading import stamp_of

# What a step computes is in its key. How its settings are read (they are hashed as values), how it is started, and what
# is shown while it runs are not: a change there re-runs nothing.
NOT_SOURCE = (
    "objrec.config",
    "objrec.runner",
    "objrec.steps.base",
    "objrec.steps.command",
    "objrec.steps.keys",
    "objrec.system.progress",
    "objrec.training.display",
)
_FILE_NAME = re.compile(r"\w[\w-]*(\.\w+)+")


@dataclass(frozen=True)
class KeyParts:
    """What a key is made of; kept in the manifest, so that a rerun can say what changed."""

    config: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str]
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def changes_since(self, old: Mapping[str, Any]) -> str:
        """Say in a few words what differs from the parts in an older manifest."""
        said: list[str] = []
        for part, phrase in (("config", "{k} {a} → {b}"), ("inputs", "{k} changed"), ("libraries", "{k} {a} → {b}")):
            now, was = getattr(self, part), old.get(part, {})
            for k in sorted({*now, *was}):
                if now.get(k) != was.get(k):
                    said.append(phrase.format(k=k, a=_short(was.get(k)), b=_short(now.get(k))))
        sources = [k for k in {*self.sources, *old.get("sources", {})} if self.sources.get(k) != old["sources"].get(k)]
        said += [f"{k} edited" for k in sorted(sources)]
        return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def key_parts(step: Step, config: Config, inputs: Mapping[str, str], sources: SourceIndex) -> KeyParts:
    """Collect the parts of ``step``'s key; ``inputs`` maps ports to content digests."""
    read = settings_read(step, config)
    targets = {v.rpartition(".")[0] for k, v in read.items() if k.endswith("_target_") and v.startswith("objrec.")}
    return KeyParts(
        config=read,
        inputs=dict(inputs),
        sources=sources.closure(step.module, *sorted(targets)),
        libraries={name: _version(name) for name in sorted(step.libraries)},
    )


def settings_read(step: Step, config: Config) -> dict[str, Any]:
    """Return the settings that are part of ``step``'s key, by dotted name."""
    return {k: v for k, v in _flat(dump(config, keyed_only=True)) if _covers(step.reads, k)}


class SourceIndex:
    """Content hashes and imports of objrec's source files, remembered by size and time between runs."""

    def __init__(self, memory: Path) -> None:
        self._root = Path(__file__).resolve().parents[1]
        self._memory = memory
        try:
            self._known: dict[str, list[Any]] = json.loads(memory.read_text())
        except (OSError, ValueError):
            self._known = {}
        self._learnt = False

    def closure(self, *modules: str) -> dict[str, str]:
        """Map every objrec file that the modules import, directly or not, or name, to its sha256."""
        found: dict[str, str] = {}
        queue = list(modules)
        seen: set[str] = set()
        while queue:
            module = queue.pop()
            if module in seen or _is_outside(module):
                continue
            seen.add(module)
            path = self._file(module)
            if path is None:
                continue
            digest, imports, names = self._look(path)
            found[str(path.relative_to(self._root.parent))] = digest
            queue += [*imports, module.rpartition(".")[0]]
            for beside in map(path.with_name, names):
                if beside.is_file():
                    found[str(beside.relative_to(self._root.parent))] = self._look(beside)[0]
        return found

    def remember(self) -> None:
        """Write what was learnt, so that the next run needs only stat."""
        if self._learnt:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._memory, json.dumps(self._known))

    def _file(self, module: str) -> Path | None:
        if module.split(".")[0] != "objrec":
            return None
        base = self._root.joinpath(*module.split(".")[1:])
        candidates = (base.with_suffix(".py"), base / "__init__.py") if base != self._root else (base / "__init__.py",)
        return next((p for p in candidates if p.is_file()), None)

    def _look(self, path: Path) -> tuple[str, list[str], list[str]]:
        """Return a file's sha256, the modules that it imports, and its constants that may be names of files."""
        stat = path.stat()
        name, mark = str(path), list(stamp_of(stat))
        known = self._known.get(name)
        if known is None or known[0] != mark or len(known) != 4:  # 3: written by an older version
            text = path.read_bytes()
            imports, names = self._references(text) if path.suffix == ".py" else ([], [])
            known = [mark, hashlib.sha256(text).hexdigest(), imports, names]
            self._known[name] = known
            self._learnt = True
        return known[1], known[2], known[3]

    def _references(self, text: bytes) -> tuple[list[str], list[str]]:
        imports, names = set(), set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imports |= {a.name for a in node.names if a.name.startswith("objrec")}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("objrec"):
                assert node.module is not None
                for alias in node.names:  # `from package import x`: a module of that name, else a name in the package
                    inner = f"{node.module}.{alias.name}"
                    imports.add(inner if self._file(inner) else node.module)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _FILE_NAME.fullmatch(node.value):
                names.add(node.value)
        return sorted(imports), sorted(names)


def _is_outside(module: str) -> bool:
    """Whether a module is outside every key. The packages' own files hold no code, but the list of steps."""
    return module in ("objrec", "objrec.steps") or any(module == m or module.startswith(f"{m}.") for m in NOT_SOURCE)


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, data


def _covers(reads: tuple[str, ...], key: str) -> bool:
    return any(key == r or key.startswith(f"{r}.") for r in reads)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _version(distribution: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return "absent"
