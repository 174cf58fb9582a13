"""uvicorn around the application: sockets, slow clients, signals, drain."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Generator
from types import FrameType

import uvicorn

from objrec.config.errors import UserError
from objrec.serving import logs
from objrec.serving.app import create_app
from objrec.serving.http_protocol import HeadLimits, protocol
from objrec.serving.memory import return_large_blocks
from objrec.serving.settings import ServiceSettings
from objrec.serving.state import State

logger = logging.getLogger(logs.LOGGER)
SO_ATTACH_FILTER = 26  # of Linux; Python does not name it
ACCEPT_SECONDS = 0.2
MAX_CONNECTIONS = 2000
OTHER_FILES = 150  # descriptors kept for models, logs and connections that are refused as too many
KEEP_ALIVE = 30  # seconds that an idle connection is kept


def run_in_foreground(settings: ServiceSettings) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError when there is no model or the address cannot be had."""
    state = State(settings)
    state.models.follow()
    logs.set_up(None)
    listener = bind(settings.host, settings.port)
    print(f"serving {state.serving().version[:12]} at {address(listener)} (Ctrl-C ends it)", flush=True)
    serve(state, listener)


def serve(state: State, listener: socket.socket) -> None:
    """Serve until a signal ends it."""
    return_large_blocks()
    settings = state.settings
    limits = HeadLimits(
        seconds=settings.timeout, head=settings.max_head, headers=settings.max_headers, target=settings.max_target
    )
    config = uvicorn.Config(
        create_app(state),
        http=protocol(limits),
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        limit_concurrency=_most_connections(),
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.drain) + 1,
    )
    Server(config, state, listener).run(sockets=[listener])


class Server(uvicorn.Server):
    """Leaves in two steps on SIGTERM or Ctrl-C, so that no request is lost.

    First, for ``grace`` seconds, ``/readyz`` says no and every answer asks its client to close the connection, while
    all is still answered. Then new connections are no longer let in, those on their way are accepted, and only after
    that the listening socket closes; what is in flight has ``drain`` seconds to end.
    """

    def __init__(self, config: uvicorn.Config, state: State, listener: socket.socket) -> None:
        super().__init__(config)
        self.state, self.listener = state, listener
        self._leave_at: float | None = None
        self._close_at: float | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: the process ends with status 0."""
        if threading.current_thread() is not threading.main_thread():  # as in a test; signals are not ours then
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._leave_at is not None:  # asked twice: at once
            self.should_exit = self.force_exit = True
            return
        self.state.draining = True
        self._leave_at = time.monotonic() + self.state.settings.grace

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._leave_at is not None and self._close_at is None and now >= self._leave_at:
            refuse_connections(self.listener)
            self._close_at = now + ACCEPT_SECONDS
        leave = self._close_at is not None and now >= self._close_at
        return await super().on_tick(counter) or leave


def _most_connections() -> int:
    """Return how many connections may be open at once, and let the process have as many files open as that takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - OTHER_FILES))
    return most + 1  # uvicorn answers 503 from this number on


def refuse_connections(listener: socket.socket) -> None:
    """Drop the first packet of new connections, so that closing the socket resets none that was made already.

    A connection that the kernel has completed and nobody has accepted yet is reset when its listening socket closes.
    A socket filter (Linux, no privilege needed) on the SYN flag keeps new ones out while the last are accepted; their
    clients try again after a second and find the port closed. Elsewhere the small gap remains.
    """
    # load the flags byte of the TCP header; drop if SYN is set; else keep all
    program = b"".join(
        struct.pack("HBBI", *row)
        for row in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF))
    )
    instructions = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(instructions))
        )


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
        reason = error.strerror or str(error)
        raise UserError(f"serve.host={host} serve.port={port}: {reason}; serve.port=0 takes a free one") from None
    return listener


def address(listener: socket.socket) -> str:
    """Return the URL under which this machine reaches a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
