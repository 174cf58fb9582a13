"""The cache of step outputs: built beside their place, renamed when complete, checked when used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objrec.steps.base import Step
from objrec.steps.keys import KeyParts
from objrec.system import outputs
from objrec.system.files import file_sha256, lock, write_atomically
from objrec.system.progress import note
from objrec.system.reading import SETTLED, stamp_of, unreadable

MANIFEST = "manifest.json"
Row = tuple[int, int, int, int, str]  # the stamp of a file, see ``stamp_of``, and its sha256


@dataclass(frozen=True)
class Entry:
    """A complete, verified set of outputs of a step."""

    outputs: dict[str, Path]
    digests: dict[str, str]  # content of each output: file names and bytes, not times


class StepCache:
    """Outputs by step and key under one folder. Safe for several processes at once and against a kill at any moment."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def lock(self, step: Step, key: str) -> Iterator[int]:
        """Hold the right to build one entry; yields the descriptor.

        A step's process inherits the descriptor, so that the right is held until the last writer is gone, even when
        the process that asked for it was killed.
        """
        with lock(self.root / "locks" / f"{step.name}-{key}") as descriptor:
            yield descriptor

    def find(self, step: Step, key: str) -> tuple[Entry | None, str]:
        """Return the stored entry, or None and what is wrong with it (empty: there is none)."""
        place = self._place(step, key)
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            for port in step.outputs:
                recorded = {k: tuple(v) for k, v in manifest["outputs"][port.name]["files"].items()}
                if damage := _damage(place / port.name, recorded):
                    return None, f"stored output damaged: {port.name}/{damage}".rstrip("/")
            digests = {p.name: manifest["outputs"][p.name]["digest"] for p in step.outputs}
        except FileNotFoundError:
            return None, "stored output damaged: no manifest" if place.exists() else ""
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, "stored output damaged: unreadable manifest"
        return Entry({p.name: place / p.name for p in step.outputs}, digests), ""

    def last_parts(self, step: Step) -> dict[str, Any] | None:
        """Return the key parts of the step's newest entry, to say what changed since."""
        manifests = sorted((self.root / step.name).glob(f"*/{MANIFEST}"), key=lambda p: p.stat().st_mtime_ns)
        for path in reversed(manifests):
            with contextlib.suppress(OSError, ValueError, KeyError):
                parts: dict[str, Any] = json.loads(path.read_text())["parts"]
                return parts
        return None

    def workspace(self, step: Step, key: str) -> dict[str, Path]:
        """Return where to build each output. What an interrupted try left is kept for a step that resumes."""
        partial = self._partial(step, key)
        if partial.exists() and not step.resumes:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        return {p.name: partial / p.name for p in step.outputs}

    def publish(self, step: Step, key: str, parts: KeyParts) -> Entry:
        """Make the workspace the stored entry. Call under the lock, after the step has ended well."""
        partial, place = self._partial(step, key), self._place(step, key)
        built: dict[str, Any] = {}
        for port in step.outputs:
            files = scan(partial / port.name)
            built[port.name] = {"digest": digest_of(files), "files": files}
        manifest = {"step": step.name, "key": key, "parts": asdict(parts), "outputs": built}
        write_atomically(partial / MANIFEST, json.dumps(manifest))
        self.discard(step, key)
        partial.rename(place)
        return Entry({n: place / n for n in built}, {n: o["digest"] for n, o in built.items()})

    def discard(self, step: Step, key: str) -> None:
        """Remove an entry, first out of sight and then from the disk; files that it does not list are kept."""
        place = self._place(step, key)
        if place.exists():
            trash = place.with_suffix(f".trash{os.getpid()}")
            place.rename(trash)
            self._keep_foreign(trash, step)
            shutil.rmtree(trash, ignore_errors=True)

    def _keep_foreign(self, entry: Path, step: Step) -> None:
        """Move what someone put into an entry to ``cache-kept/``: without a readable manifest that may be all of it."""
        try:
            listed = json.loads((entry / MANIFEST).read_text())["outputs"]
            ours = {f"{port}/{n}".rstrip("/") for port, output in listed.items() for n in output["files"]} | {MANIFEST}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            ours = {MANIFEST}
        foreign = [n for n, _ in outputs.files_in(entry) if n not in ours and not n.endswith(outputs.MARK)]
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        kept = self.root.with_name(f"{self.root.name}-kept") / f"{step.name}-{stamp}-{os.getpid()}"
        for name in foreign:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            (entry / name).rename(kept / name)
        if foreign:
            note(f"{len(foreign)} files in {self._place(step, entry.stem)} are not in its manifest: moved to {kept}")

    def clear_workspace(self, step: Step, key: str) -> None:
        shutil.rmtree(self._partial(step, key), ignore_errors=True)

    def clear_refused(self, step: Step, key: str) -> None:
        """Let nothing of a step that was refused, or found no space, stay behind, but for what was trained so far."""
        partial = self._partial(step, key)
        if not step.resumes or not any(files for _, _, files in os.walk(partial)):
            shutil.rmtree(partial, ignore_errors=True)

    def fingerprint(self, path: Path) -> str:
        """Return the content digest of a file or folder of the user's; hashes are remembered by stamp."""
        memory = self.root / "fingerprints" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
        try:
            known = {k: tuple(v) for k, v in json.loads(memory.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            known = {}
        files = scan(path, known)
        if files != known:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(files))
        return digest_of(files)

    def _place(self, step: Step, key: str) -> Path:
        return self.root / step.name / key

    def _partial(self, step: Step, key: str) -> Path:
        return self.root / step.name / f"{key}.partial"


def scan(path: Path, known: Mapping[str, Row] | None = None) -> dict[str, Row]:
    """List the files under ``path`` (or the file itself, named ``""``) with stamp and sha256.

    Args:
        known: rows of an earlier scan; where the stamp agrees, the hash is taken from there.
    """
    rows: dict[str, Row] = {}
    fresh = time.time_ns() - SETTLED
    todo: list[tuple[str, str, os.stat_result]] = []
    for name, place, stat in _walk(path):
        old = (known or {}).get(name)
        if old is not None and old[:4] == stamp_of(stat):
            rows[name] = old
        else:
            todo.append((name, place, stat))
    with ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter lock
        for (name, _, stat), sha in zip(todo, pool.map(_sha256, (t[1] for t in todo), chunksize=64), strict=True):
            stamp = stamp_of(stat)
            rows[name] = (stamp[0], stamp[1], stamp[2] if stamp[2] < fresh else -1, stamp[3], sha)
    return dict(sorted(rows.items()))


def digest_of(files: Mapping[str, Row]) -> str:
    """Return one hash for names and contents, free of times.

    Pages beside the data (``*.html`` at the top) are left out: no step reads them, so a changed report re-runs nothing
    after the step that writes it.
    """
    total = hashlib.sha256()
    for name in sorted(n for n in files if "/" in n or not n.endswith(".html")):
        total.update(os.fsencode(f"{name}\0{files[name][-1]}\n"))
    return total.hexdigest()


def _damage(path: Path, recorded: Mapping[str, Row]) -> str:
    """Name a file that is missing, extra or altered; empty when all is well. An unchanged stamp is trusted."""
    present = {name: (place, stat) for name, place, stat in _walk(path)}
    for name in sorted(set(present) ^ set(recorded)):
        return name or "missing"
    for name, (place, stat) in present.items():
        *stamp, sha = recorded[name]
        if stat.st_size != stamp[0] or (stamp_of(stat) != tuple(stamp) and _sha256(place) != sha):
            return name or "altered"
    return ""


def _walk(path: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    if path.is_file():
        yield "", str(path), path.stat()
        return
    stack = [(str(path), "")]
    while stack:
        folder, prefix = stack.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    stack.append((entry.path, f"{prefix}{entry.name}/"))
                else:
                    yield f"{prefix}{entry.name}", entry.path, entry.stat()


def _sha256(path: str) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
