"""The registry as a folder.

::

    registry_dir/
      models/<sha256>/    a model folder, named by its content, never changed
      registry.jsonl      what happened, a line each, only ever appended to; ``check`` in a line covers the line
      aliases.json        the model in ``production`` and the ``previous`` one: one file, so both move in one rename
      .deploying          taken by a deployment from its decision to its end
      .lock               held by a writer; released by the kernel when its holder dies

Readers take no lock: models appear and aliases move by rename, and a torn last line of the log is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError
from objrec.config.space import FULL
from objrec.model_registry.records import Record
from objrec.models.card import CURE, ModelCard
from objrec.system.files import file_sha256, lock, permit, sync_folder, write_json
from objrec.system.outputs import claim, files_in

INCOMING = ".incoming-"
COPIED = ("model.safetensors", "model.onnx", "model.json", "config.yaml")


@dataclass(frozen=True)
class FolderRegistry:
    """Models, aliases and their history under one folder, which is created when first written to."""

    root: Path

    # Reading

    def production(self) -> Record | None:
        """The model that serves, or None before the first deployment."""
        return self.aliases().get("production")

    def aliases(self) -> dict[str, Record]:
        """Return ``production`` and ``previous``, as far as they are set. Raises UserError for a damaged file.

        The file says which models they are. What is known of a model, its accuracy above all, is the log's word; only a
        model that the log has lost, or a log that cannot be read, leaves the file's.
        """
        known: dict[str, Record] = {}
        with contextlib.suppress(OSError):
            known = self.records()
        return {name: known.get(record.sha256, record) for name, record in self._written_aliases().items()}

    def _written_aliases(self) -> dict[str, Record]:
        path = self.root / "aliases.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return {name: Record.model_validate(record) for name, record in data.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({str(error).splitlines()[0]}): delete it, then "
                f"python -m objrec.registry promote <version> (see registry.jsonl for the last one promoted)"
            ) from None

    def model_dir(self, sha256: str) -> Path:
        return self.root / "models" / sha256

    def models(self) -> list[str]:
        """Return the sha256 of every registered model."""
        folder = self.root / "models"
        return sorted(p.name for p in folder.iterdir() if len(p.name) == 64 and p.is_dir()) if folder.is_dir() else []

    def resolve(self, name: str) -> str:
        """Return the sha256 that an alias, a sha256 or an unambiguous beginning of one means. Raises UserError."""
        aliases = self.aliases()
        if name in aliases:
            return aliases[name].sha256
        found = [m for m in self.models() if m.startswith(name)] if name else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{name} is the beginning of {len(found)} models: give more digits")
        raise UserError(f"no model {name or '(empty name)'} in {self.root}: see python -m objrec.registry list")

    def events(self) -> list[dict[str, Any]]:
        """Return the log, oldest first. A line that a crash tore or somebody edited is left out.

        What a line holds is read defensively, as by ``model_of``.
        """
        return [event for _, event in self._lines() if event is not None]

    def edited_lines(self) -> list[int]:
        """Return the numbers of the log's lines that differ from what was written."""
        return [number for number, event in self._lines() if event is None]

    def _lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """Yield number and event of each line that holds one; None for an event that is not as it was written."""
        try:
            lines = (self.root / "registry.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        for number, line in enumerate(lines, 1):
            with contextlib.suppress(ValueError, RecursionError):  # the latter by a line of brackets
                event = json.loads(line)
                if isinstance(event, dict):
                    check = event.pop("check", None)  # lines of older versions have none
                    yield number, event if check in (None, _check_of(event)) else None

    def records(self) -> dict[str, Record]:
        """Return the newest record of every registered model, oldest registration first.

        What was measured for one comparison only, on another test set, is not among them.
        """
        found: dict[str, Record] = {}
        present = set(self.models())
        for event in self.events():
            if event.get("event") == "measured":
                continue
            with contextlib.suppress(ValueError):
                record = Record.model_validate(event.get("record"))
                if record.sha256 in present:
                    found[record.sha256] = record
        return found

    # Writing

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the registry against other writers. Not reentrant."""
        claim_registry(self.root)
        with lock(self.root / ".lock"):
            yield

    @contextlib.contextmanager
    def deploying(self) -> Iterator[None]:
        """Hold off other deployments: what is decided here is still true when it is done."""
        claim_registry(self.root)
        waiting = f"another deployment to {self.root} is under way: waiting for it"
        with lock(self.root / ".deploying", busy=lambda: print(waiting, file=sys.stderr, flush=True)):
            yield

    def log(self, event: str, **details: Any) -> None:
        """Append a line to the log. One write; after a torn line it starts a new one."""
        claim_registry(self.root)
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
        entry["check"] = _check_of(entry)
        line = (json.dumps(entry, sort_keys=False) + "\n").encode()
        with (self.root / "registry.jsonl").open("ab+") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def add(self, model_dir: Path, record: Record) -> Path:
        """Copy a model folder into the registry, verified, and return its place there. Adding it again is harmless.

        What serving needs is copied: the files that ``model.json`` lists, ``model.json`` and ``config.yaml``.

        Raises:
            UserError: when the folder is damaged, or a model with the same weights but another meaning is registered.
        """
        card = ModelCard.load(model_dir)
        place = self.model_dir(card.sha256)
        with self.lock():
            sound = place.is_dir() and not self.fault(card.sha256)
            if sound:
                known = ModelCard.load(place)
                _check_same(known, card, place)
            if not sound or set(card.files) - set(known.files):  # an older version kept fewer files
                self._copy(model_dir, card, place)
            files = {path.name: file_sha256(path) for path in sorted(place.iterdir())}
            self.log("registered", record=record.model_dump(), files=files)
        return place

    def hashes(self) -> dict[str, dict[str, str]]:
        """Return the sha256 of every file of each registered model, by name; models of older versions have none."""
        found = {}
        for event in self.events():
            sha256, files = model_of(event), event.get("files")
            if event.get("event") == "registered" and sha256 is not None and isinstance(files, dict):
                found[sha256] = files
        return found

    def _copy(self, model_dir: Path, card: ModelCard, place: Path) -> None:
        models = self.root / "models"
        models.mkdir(parents=True, exist_ok=True)
        incoming = Path(tempfile.mkdtemp(prefix=INCOMING, dir=models))
        try:
            for name in (*card.files, "model.json", "config.yaml"):
                if name == "config.yaml" and not (model_dir / name).is_file():
                    continue
                _copy_file(model_dir / name, incoming / name)
                with (incoming / name).open("rb") as file:
                    os.fsync(file.fileno())
            card.verify(incoming)  # the copy: what was read once is what was checked
            permit(incoming)
            if place.exists():  # damaged: set aside first, as a rename cannot replace a folder with content
                place.rename(models / f"{INCOMING}damaged-{os.getpid()}-{place.name[:12]}")
            incoming.rename(place)
            sync_folder(models)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def promote(self, record: Record, *, event: str = "promoted", **details: Any) -> Record | None:
        """Make a registered model the one in production; the last one becomes ``previous``. Returns that one.

        Raises:
            UserError: when the model is not registered.
        """
        with self.lock():
            if not self.model_dir(record.sha256).is_dir():
                raise UserError(f"{record.sha256[:12]} is not registered in {self.root}")
            aliases = self.aliases()
            last = aliases.get("production")
            if last is not None and last.sha256 != record.sha256:
                aliases["previous"] = last
            aliases["production"] = record
            # the log first: where it cannot be written, nothing has moved
            self.log(event, record=record.model_dump(), previous=last.sha256 if last else None, **details)
            self._write_aliases(aliases)
        return last

    def restore(self, aliases: dict[str, Record], *, failed: Record) -> None:
        """Put the aliases back as they were, unless somebody has promoted another model than the one that failed."""
        with self.lock():
            current = self.production()
            if current is not None and current.sha256 == failed.sha256:
                self._write_aliases(aliases)

    def check(self, sha256: str) -> None:
        """Raises UserError, with what to do, when a registered model is missing or damaged."""
        if fault := self.fault(sha256):
            raise UserError(f"{fault}: deploy the model again, or promote another one")

    def fault(self, sha256: str) -> str:
        """Return what is wrong with a registered model; an empty text for a sound one."""
        return _fault(self.model_dir(sha256), self.hashes().get(sha256, {}))

    def _write_aliases(self, aliases: dict[str, Record]) -> None:
        write_json(self.root / "aliases.json", {name: record.model_dump() for name, record in aliases.items()})

    def verify(self) -> dict[str, str]:
        """Return what is wrong with each registered model: an empty text for a sound one."""
        hashes, records = self.hashes(), self.records()
        found = {sha256: _fault(self.model_dir(sha256), hashes.get(sha256, {})) for sha256 in self.models()}
        for alias, record in self._written_aliases().items():
            if record.sha256 not in found:
                found[record.sha256] = f"the model in {alias} is missing"
            elif not found[record.sha256] and not self._is_logged(record) and record.sha256 in records:
                found[record.sha256] = (
                    f"aliases.json says of the model in {alias} what registry.jsonl never said (accuracy "
                    f"{record.accuracy}): the latter counts; promote the model again"
                )
        return found

    def _is_logged(self, record: Record) -> bool:
        said = (event.get("record") for event in self.events() if model_of(event) == record.sha256)
        return any(known == record.model_dump(include=set(known)) for known in said if isinstance(known, dict))

    def _newest_first(self) -> list[str]:
        """Return what was registered and is there; a model that the log does not know counts as newer than all others.

        The log may have been lost: by its folders' times the last models stay, instead of none.
        """
        present = self.models()
        logged = [m for e in reversed(self.events()) if e.get("event") == "registered" and (m := model_of(e))]
        unknown = sorted(set(present) - set(logged), key=lambda m: self.model_dir(m).stat().st_mtime, reverse=True)
        return [*unknown, *(m for m in dict.fromkeys(logged) if m in present)]

    def _remove(self, folder: Path) -> None:
        """Remove a model's folder; files that someone put there move to ``kept/``."""
        listed = _listed(folder)
        foreign = [name for name, _ in files_in(folder) if name not in listed] if folder.is_dir() else []
        for name in foreign:
            place = self.root / "kept" / folder.name / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(place)
            print(f"note: {folder.name}/{name} is not of the model: kept as {place}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)

    def gc(self, *, keep: int) -> list[str]:
        """Remove what crashes left and all but the ``keep`` newest and the aliased models. Returns those removed."""
        with self.lock():
            models = self.root / "models"
            for left in models.glob(f"{INCOMING}*"):
                self._remove(left)
            aliased = {record.sha256 for record in self.aliases().values()}
            newest = self._newest_first()[:keep]
            removed = [m for m in self.models() if m not in aliased and m not in newest]
            for sha256 in removed:
                doomed = models / f"{INCOMING}removed-{sha256[:12]}"
                self.model_dir(sha256).rename(doomed)  # gone in one step, whatever interrupts the rest
                self._remove(doomed)
                (self.root / "smoke" / f"{sha256}.json").unlink(missing_ok=True)  # what serving found out about it
                shutil.rmtree(self.root / "tuned" / sha256, ignore_errors=True)
                self.log("removed", sha256=sha256)
        return removed


def _listed(folder: Path) -> set[str]:
    """Return the names of the files that ``add`` copies."""
    with contextlib.suppress(UserError):
        return {*COPIED, *ModelCard.load(folder).files}
    return set(COPIED)


def claim_registry(root: Path) -> None:
    """Make ``root`` a registry, or see that it is one. Raises UserError for another folder that holds files."""
    known = ("registry.jsonl", "aliases.json", ".lock", ".deploying", ".service.lock")  # of one without a mark
    claim(root, "registry_dir", lambda folder: any((folder / name).exists() for name in known))


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file of a model folder. Raises UserError for one that is missing, no file, or cannot be copied."""
    try:
        if source.exists() and not source.is_file():  # opening a pipe would block
            raise UserError(f"{source} is not a file: {CURE}")
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise UserError(f"{source} is missing: the model folder is incomplete; {CURE}") from None
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"{source} cannot be copied to {target.parent.parent}: {error.strerror}") from None


def model_of(event: dict[str, Any]) -> str | None:
    """Return the sha256 of the model that a line of the log is about; None where it does not say."""
    record = event.get("record")
    sha256 = record.get("sha256") if isinstance(record, dict) else event.get("sha256")
    return sha256 if isinstance(sha256, str) else None


def _fault(model_dir: Path, hashes: Mapping[str, str]) -> str:
    """Return what is wrong with a model folder, by its registered ``hashes``, or by ``model.json`` without them."""
    try:
        card = ModelCard.load(model_dir)
        unlisted = {name: sha256 for name, sha256 in card.files.items() if name not in hashes}
        card.model_copy(update={"files": unlisted}).verify(model_dir)
    except UserError as error:
        return str(error)
    for name, expected in hashes.items():
        path = model_dir / name
        try:
            found = file_sha256(path) if path.is_file() else ""  # opening a pipe would block
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if found != expected:
            return f"{path} is damaged: it is not the file that was registered" if found else f"{path} is missing"
    return "" if card.sha256 == model_dir.name else f"{model_dir} holds another model: {card.sha256}"


def _check_of(event: Mapping[str, Any]) -> str:
    """Return a short hash over all that a line of the log says."""
    content = json.dumps({k: v for k, v in event.items() if k != "check"}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_same(known: ModelCard, new: ModelCard, place: Path) -> None:
    meaning = ("class_names", "input_size", "mean", "std", "interpolation", "crop_pct", "temperature")
    differing = [name for name in meaning if getattr(known, name) != getattr(new, name)]
    if differing:
        raise UserError(
            f"{place} holds the same weights with another {', '.join(differing)}: one of the two model folders is "
            "mislabelled. Roll back or promote another model, then python -m objrec.registry gc deploy.keep=0"
        )
