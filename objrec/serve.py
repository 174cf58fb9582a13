"""``python -m objrec.serve``: the endpoint in the foreground, or the background service that deploy keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from objrec.config.cli import command, overrides_of
from objrec.config.errors import UserError
from objrec.config.schema import Config

HELP = """python -m objrec.serve [overrides]

Serve the production model at POST /score, with a page to try it at /.

  serve.action=run       in the foreground (default); action=... is short for it
  action=start           in the background, unless it already runs; prints the URL
  action=status          print whether it runs, its URL and the model
  action=stop            stop it after answering the requests in flight
  model_dir=DIR          serve a model folder instead of the production model (foreground only)

  serve.port=8000        0 picks a free port            serve.host=0.0.0.0  accept other machines
  serve.key_file=FILE    API keys, one per line; clients must send one. Or set OBJREC_SERVE_KEY
  serve.runtime=auto     onnxruntime, openvino, torch   registry_dir=DIR    another registry
"""


def main(arguments: Sequence[str] | None = None) -> int:
    return command(HELP, _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    from objrec.config.load import load_config

    overrides = [f"serve.{o}" if o.startswith("action=") else o for o in overrides_of(arguments)]
    config = load_config(overrides)
    actions = {"run": _run, "start": _start, "stop": _stop, "status": _status}
    return actions[config.serve.action](config, Path(config.registry_dir).resolve())


def _run(config: Config, registry_dir: Path) -> int:
    from objrec.serving.server import run_in_foreground
    from objrec.serving.settings import ServiceSettings

    model_dir = None if config.model_dir is None else str(Path(config.model_dir).resolve())
    run_in_foreground(ServiceSettings.of(config, registry_dir=str(registry_dir), model_dir=model_dir))
    return 0


def _start(config: Config, registry_dir: Path) -> int:
    from objrec.deployment import service
    from objrec.model_registry.store import FolderRegistry
    from objrec.serving.settings import ServiceSettings

    if config.model_dir is not None:
        raise UserError("action=start serves the production model; model_dir=DIR works in the foreground only")
    if FolderRegistry(registry_dir).production() is None:
        raise UserError(f"no model in {registry_dir} is in production: run python -m objrec.pipeline first")
    print(service.ensure_started(ServiceSettings.of(config, registry_dir=str(registry_dir))).url)
    return 0


def _stop(config: Config, registry_dir: Path) -> int:
    from objrec.deployment import service

    stopped = service.stop(registry_dir)
    print(f"stopped {stopped.url}" if stopped else "no service was running")
    return 0


def _status(config: Config, registry_dir: Path) -> int:
    from objrec.deployment import service

    service.refuse_foreign_service(registry_dir)
    running, version = service.ask(registry_dir)
    if running is None:
        print(json.dumps({"running": False}))
        return 1
    content = {"running": True, "url": running.url, "pid": running.pid, **version}
    if not version:
        content["problem"] = f"running, but does not answer (pid {running.pid}): action=stop ends it"
    print(json.dumps(content, indent=2))
    return 0 if version else 1


if __name__ == "__main__":
    sys.exit(main())
