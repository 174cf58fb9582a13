"""The background service's own process: detaches itself, then serves. Started by ``objrec.deployment.service``."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
from typing import Any


def main() -> None:
    start = json.load(sys.stdin)  # over a pipe, because keys must not be seen in a list of processes
    child = os.fork()  # before any thread is born; the child is nobody's child when this process ends
    if child:
        print(child, flush=True)
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # stderr is the log already; the pipe to the process that started us closes here
    os.close(nothing)
    run(start)


def run(start: dict[str, Any]) -> None:
    """Bind, write the state file, serve until SIGTERM."""
    from pathlib import Path

    from objrec.config.errors import UserError
    from objrec.deployment.service import Process, Service, is_named, log_file, write_state
    from objrec.serving import logs
    from objrec.serving.server import address, bind, serve
    from objrec.serving.settings import ServiceSettings
    from objrec.serving.state import State

    settings = ServiceSettings(**start["settings"])
    registry_dir = Path(settings.registry_dir)
    os.chdir(registry_dir)
    os.umask(0o077)  # the log has addresses of clients, what is kept their images
    logs.set_up(log_file(registry_dir))
    try:
        try:
            listener = bind(settings.host, start["preferred_port"] or settings.port)
        except UserError:
            if not start["preferred_port"]:
                raise
            listener = bind(settings.host, settings.port)
    except UserError as error:
        sys.exit(str(error))
    instance = start["instance"]
    named = functools.partial(is_named, registry_dir, instance)
    state = State(settings, instance=instance, token=secrets.token_hex(16), is_named=named)
    me = Process.of(os.getpid())
    assert me is not None
    service = Service(
        pid=me.pid,
        started=me.started,
        url=address(listener),
        instance=state.instance,
        token=state.token,
        settings=settings.digest,
    )
    write_state(registry_dir, service)
    serve(state, listener)


if __name__ == "__main__":
    main()
