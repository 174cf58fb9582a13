"""HTTP/1.1 of one connection: uvicorn's, with limits on the slow and care for answers that come early."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER_SECONDS, LINGER_BYTES = 5.0, 64_000_000
TOO_MANY = 50  # connections above the limit, which are answered 503, before more are not even listened to
SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
INVALID = "Invalid HTTP request received."


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return the protocol with a time limit on what nobody else limits: a request's head, and bytes of no request."""

    class Limited(Protocol):
        patience = seconds

    return Limited


class Protocol(HttpToolsProtocol):
    """What differs from uvicorn's protocol.

    - A head has ``patience`` seconds to come, and so have bytes after an answer that begin no request; the rest of a
      body that was refused may not pause for longer. A body that is waited for is limited by who waits.
    - A client who still sends when the connection is closed is read for a while, so that the answer reaches him.
    - A wish for another protocol (``Upgrade``, as Java's client and ``curl --http2`` send) is ignored, body and all.
    - A client who closes his side after the request gets his answer.
    """

    patience = 10.0
    _timer: TimerHandle | None = None
    _unread = False  # whether a request was begun and is not yet here as a whole
    _lingering = False
    _discarded = 0  # bytes, while lingering
    _upgrade = False  # whether the last request of this connection has come: what follows its body is not read
    _socket: Any  # the transport itself; uvicorn's is the one whose close lingers
    _closing: _Lingering

    def connection_made(self, transport: Any) -> None:
        self._socket, self._closing = transport, _Lingering(transport, self)
        super().connection_made(self._closing)  # type: ignore[arg-type]
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + TOO_MANY:
            transport.close()  # the last file descriptors are for logs and models
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._socket.close()
            return
        if self._upgrade and not self._unread:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._upgrade or self._unread:
                self.send_400_response(INVALID)
            return
        except httptools.HttpParserUpgrade as upgrade:
            self._read_body_of_upgrade(data[upgrade.args[0] :])
        cycle = self.cycle
        if cycle is None or not cycle.response_complete or self.timeout_keep_alive_task is not None:
            return
        # uvicorn takes any byte for the beginning of a request, and waits for ever
        if self._timer is None or (self._unread and cycle.scope is self.scope):  # in a body that was refused
            self._watch()

    def _read_body_of_upgrade(self, data: bytes) -> None:
        """Go on where the parser stopped, which takes the body of such a request for the other protocol."""
        framing = [h for h in self.headers if h[0] in (b"content-length", b"transfer-encoding")]
        head = b"".join(b"%s: %s\r\n" % header for header in framing)
        self._upgrade = True
        self.parser = httptools.HttpRequestParser(
            SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        )
        self.data_received(b"POST / HTTP/1.1\r\n" + head + b"\r\n" + data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether to keep the other direction open: for the answer to a request that came as a whole."""
        if self._unread or self.cycle is None or self.cycle.response_complete:
            return False
        self.cycle.keep_alive = False
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)
        self._closing.release()

    def shutdown(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
        elif not self._lingering:
            self._socket.close()  # nobody is owed an answer

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._unread = True
        self._watch()

    def on_headers_complete(self) -> None:
        self._unwatch()
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what comes after its body is not read

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete or not self._unread:  # refused; or of a request behind one that asked to upgrade
            return
        if not cycle.body:
            # in one piece, as pictures mostly are: uvicorn would copy it twice, and stop and start reading
            cycle.body = body  # type: ignore[assignment]
            cycle.message_event.set()
            return
        if isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)  # which grows without being copied
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._unread = False
        super().on_message_complete()
        if self.cycle.response_complete:  # it was refused, and has been read to its end: the connection is idle now
            self._unwatch()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def close(self) -> None:
        """Close the connection, and where a request is still being sent, let the client read the answer first.

        To close a socket with unread data in it resets the connection, and the client may lose what it was told.
        """
        if not self._unread or self._socket.is_closing():
            self._socket.close()
        elif not self._lingering:
            self._lingering = True
            self._unwatch()
            self._unset_keepalive_if_required()
            self._closing.write = lambda _: None  # of a request that still runs
            try:
                self._socket.write_eof()
                self._socket.resume_reading()
            except (OSError, RuntimeError):  # the client has gone
                self._socket.abort()
                return
            self._timer = self.loop.call_later(LINGER_SECONDS, self._socket.close)

    def is_closing(self) -> bool:
        return self._lingering or self._socket.is_closing()

    def _watch(self) -> None:
        self._unwatch()
        self._timer = self.loop.call_later(self.patience, self._too_slow)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and cycle.scope is not self.scope):  # in a head, or before it
            self._socket.write(SLOW)
        self._socket.close()


class _Lingering:
    """A transport whose ``close`` is the protocol's."""

    def __init__(self, transport: Any, protocol: Protocol) -> None:
        self._transport = transport
        self.write: Callable[[bytes], None] = transport.write
        self.close, self.is_closing = protocol.close, protocol.is_closing

    def release(self) -> None:
        """Know the protocol no longer, so that what it holds is given back at once."""
        self.close, self.is_closing = self._transport.close, self._transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
