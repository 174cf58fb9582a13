"""``python -m objrec.registry``: look at the models, and move the production alias by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from objrec.config.cli import command, overrides_of
from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Config
from objrec.model_registry.records import Record
from objrec.model_registry.store import FolderRegistry, model_of
from objrec.models.card import ModelCard

HELP = """python -m objrec.registry ACTION [VERSION] [overrides]

  list                list all models, newest last, with accuracy and alias
  show VERSION        show one model and its history
  promote VERSION     put it in production, regardless of accuracy; a running service switches without downtime
  rollback            put the previous model back in production
  verify              check every file against its hash
  gc                  remove models, except the newest (deploy.keep) and those in use

  VERSION is production, previous, or the first digits of a version.   registry_dir=DIR uses another registry.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return command(HELP, _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    words = [a for a in arguments if "=" not in a and not a.startswith("-")]
    action = words[0] if words else "list"
    takes_version = action in ("show", "promote")
    actions: dict[str, Callable[[FolderRegistry, Config, str], int]] = {
        "list": _list,
        "show": _show,
        "promote": _promote,
        "rollback": _rollback,
        "verify": _verify,
        "gc": _gc,
    }
    if action not in actions:
        raise UserError(f"unknown action '{action}'.{did_you_mean(action, actions, what='actions')}")
    if len(words) != 1 + takes_version and words:
        raise UserError(f"{action} takes {'one version' if takes_version else 'no version'}: see --help")
    from objrec.config.load import load_config

    config = load_config(overrides_of([a for a in arguments if a not in words]))
    registry = FolderRegistry(Path(config.registry_dir).resolve())
    return actions[action](registry, config, words[1] if takes_version else "")


def _list(registry: FolderRegistry, config: Config, _: str) -> int:
    """Show what is there: models that the log has lost and aliases of models that are gone are listed too."""
    aliases, records, present = registry.aliases(), registry.records(), registry.models()
    names: dict[str, list[str]] = {}
    for alias, record in aliases.items():
        gone = "" if record.sha256 in present else " (missing)"
        names.setdefault(record.sha256, []).append(alias + gone)
    described = {**{r.sha256: r for r in aliases.values()}, **records}
    every = [*(m for m in present if m not in records), *(m for m in described if m not in present), *records]
    if not every:
        print(f"no models in {registry.root}")
    for sha256 in every:
        known = described.get(sha256)
        measured = known is not None and known.accuracy is not None
        accuracy = f"{known.accuracy:14.4f}" if known is not None and measured else "  not measured"
        data = f"data {known.training_data_fingerprint[:12]}" if known is not None else "not in the log"
        print(f"{sha256[:12]}  accuracy{accuracy}  {data}  {' '.join(names.get(sha256, []))}".rstrip())
    return 0


def _show(registry: FolderRegistry, config: Config, version: str) -> int:
    sha256 = registry.resolve(version)
    record = registry.records().get(sha256)
    history = [
        {k: v for k, v in event.items() if k != "record"} for event in registry.events() if model_of(event) == sha256
    ]
    content = {
        "version": sha256,
        "folder": str(registry.model_dir(sha256)),
        "aliases": [a for a, r in registry.aliases().items() if r.sha256 == sha256],
        "record": record.model_dump() if record else None,
        "card": ModelCard.load(registry.model_dir(sha256)).model_dump(),
        "history": history,
    }
    print(json.dumps(content, indent=2))
    return 0


def _promote(registry: FolderRegistry, config: Config, version: str) -> int:
    sha256 = registry.resolve(version)
    record = registry.records().get(sha256)
    if record is None:
        raise UserError(f"{sha256[:12]} has no record in {registry.root / 'registry.jsonl'}: deploy it again")
    return _move(registry, record, "promoted")


def _rollback(registry: FolderRegistry, config: Config, _: str) -> int:
    previous = registry.aliases().get("previous")
    if previous is None:
        raise UserError(f"no previous model in {registry.root} to roll back to")
    return _move(registry, previous, "rolled_back")


def _move(registry: FolderRegistry, record: Record, event: str) -> int:
    from objrec.deployment.rollout import roll_out

    last, service = roll_out(registry, record, event=event)
    place = f", served at {service.url}" if service else ""
    print(f"{record.sha256[:12]} is in production{place}; before: {last.sha256[:12] if last else 'none'}")
    return 0


def _verify(registry: FolderRegistry, config: Config, _: str) -> int:
    faults, hashes = registry.verify(), registry.hashes()
    older = "OK; registered by an older version without a hash of model.json: deploy it again to add one"
    for sha256, fault in faults.items():
        print(f"{sha256[:12]}  {fault or ('OK' if sha256 in hashes else older)}")
    edited = registry.edited_lines()
    for number in edited:
        print(f"registry.jsonl  line {number} was modified and is ignored: restore it from a copy")
    return 1 if edited or any(faults.values()) else 0


def _gc(registry: FolderRegistry, config: Config, _: str) -> int:
    removed = registry.gc(keep=config.deploy.keep)
    print("\n".join(f"removed {m[:12]}" for m in removed) or "nothing to remove")
    return 0


if __name__ == "__main__":
    sys.exit(main())
