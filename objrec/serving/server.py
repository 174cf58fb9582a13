"""uvicorn around the application: sockets, signals, drain."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from objrec.config.errors import UserError
from objrec.serving.app import State, create_app
from objrec.serving.settings import Settings


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means a free one. Raises UserError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(
            f"serve.host={host} serve.port={port}: {error.strerror}; serve.port=0 takes a free one"
        ) from None
    return listener


def run_in_foreground(settings: Settings) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError when there is no model or the address cannot be had."""
    state = State(settings)
    state.models.follow()
    listener = bind(settings.host, settings.port)
    print(f"serving {state.ready().version[:12]} at {address(listener)} (Ctrl-C ends it)", flush=True)
    serve(state, listener)


def serve(state: State, listener: socket.socket) -> None:
    """Serve until a signal ends it."""
    config = uvicorn.Config(
        create_app(state),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(state.settings.drain) + 1,
    )
    server = uvicorn.Server(config)
    asyncio.run(server.serve(sockets=[listener]))


def address(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
