"""HTTP/1.1 of one connection: uvicorn's, with limits on the slow and care for answers that come early."""

from __future__ import annotations

import asyncio
import json
from asyncio import TimerHandle
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LINGER_SECONDS, LINGER_BYTES = 5.0, 64_000_000
TOO_MANY = 50  # connections above the limit, which are answered 503, before more are not even listened to
SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
INVALID = "Invalid HTTP request received."
CHUNK = 16  # bytes that a chunk's size and line ends may take; what is more (an extension) counts against a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """On what is collected, or read past, before the application sees a request.

    Attributes:
        seconds: for a head to arrive; and for bytes that belong to no request.
        head: bytes of a head; also of trailers, of chunk extensions, of line breaks before a request.
        headers: number of them, trailers included.
        target: bytes of the request target (path and query).
    """

    seconds: float
    head: int
    headers: int
    target: int


def protocol(of: HeadLimits) -> type[asyncio.Protocol]:
    """Return the protocol with limits on what nobody else limits."""

    class Limited(Protocol):
        limits = of

    return Limited


class _Refused(Exception):
    """Raised in a callback of the parser, which then stops."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        self.status, self.code, self.reason = status, code, reason
        super().__init__(reason)


class Protocol(HttpToolsProtocol):
    """What differs from uvicorn's protocol.

    - A head has ``limits.seconds`` to come, and so have bytes after an answer that begin no request; the rest of a
      body that was refused may not pause for longer. A body that is waited for is limited by who waits.
    - A head, trailers and chunk extensions have limits in bytes and number (431, 414), counted as they arrive: the
      parser would collect them without end. Trailers are dropped: added to the head they could pass for a proxy's.
    - HTTP/1.1 requires exactly one ``Host`` (RFC 9112, 3.2): with two, a proxy and we could each believe another.
    - A client who still sends when the connection is closed is read for a while, so that the answer reaches him.
    - A request for another protocol (``Upgrade``, as Java's client and ``curl --http2`` send) is ignored, body and all.
    - A client who closes his side after the request gets his answer.
    """

    limits = HeadLimits(seconds=10.0, head=65536, headers=100, target=8192)
    _timer: TimerHandle | None = None
    _unread = False  # whether a request was begun and is not yet here as a whole
    _lingering = False
    _discarded = 0  # bytes, while lingering
    _phase = 0  # changes with each beginning, end of a head, and end of a request
    _in_head = False
    _head = _headers = 0  # of this request: bytes, number
    _carried = 0  # bytes of this phase from earlier reads that are no content
    _content = 0  # bytes of this read that are: of a body, or what each chunk needs around it
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
        phase, self._content = self._phase, 0
        try:
            self.parser.feed_data(data)
            self._count(data, phase)
        except _Refused as error:
            self._refuse(error)
            return
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Refused):
                self._refuse(error.__context__)
            elif not self._upgrade or self._unread:
                self.send_400_response(INVALID)
            return
        except httptools.HttpParserUpgrade as upgrade:
            self._read_body_of_upgrade(data[upgrade.args[0] :])
        cycle = self.cycle
        if self._unread and not self._in_head and len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()  # until the application asks for more: it may be waiting for memory
        if cycle is None or not cycle.response_complete or self.timeout_keep_alive_task is not None:
            return
        # uvicorn takes any byte for the beginning of a request, and waits for ever
        if self._timer is None or (self._unread and cycle.scope is self.scope):  # in a body that was refused
            self._watch()

    def _count(self, data: bytes, phase: int) -> None:
        """Add up what comes read by read and is no content. Raises _Refused.

        The parser reports a header when it is complete, and an extension never. What begins or ends within one read is
        not counted here: a read is no longer than the event loop makes it.
        """
        self._carried = max(0, self._carried + len(data) - self._content) if phase == self._phase else 0
        if self._carried > self.limits.head:
            raise self._too_long()

    def _too_long(self) -> _Refused:
        what = "head" if self._in_head else "trailers or chunk extensions"
        return _Refused(431, "head", f"the request's {what} take more than {self.limits.head} bytes")

    def _refuse(self, error: _Refused) -> None:
        """Answer what the application will not, or not as a whole, see."""
        cycle = self.cycle
        ours = cycle is not None and cycle.scope is self.scope  # whether the application has begun with it
        if not (ours and cycle.response_started):
            body = json.dumps({"error": error.code, "reason": error.reason}).encode()
            self._socket.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (error.status, HTTPStatus(error.status).phrase.encode(), len(body), body)
            )
        if ours and not cycle.response_complete:
            cycle.disconnected = True  # who waits for the body need not
            cycle.message_event.set()
        self.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(_Refused(400, "http", msg))

    def _read_body_of_upgrade(self, data: bytes) -> None:
        """Go on where the parser stopped, which takes the body of such a request for the other protocol."""
        framing = [h for h in self.headers if h[0] in (b"content-length", b"transfer-encoding")]
        head = b"".join(b"%s: %s\r\n" % header for header in framing)
        self._upgrade = True
        self.parser = httptools.HttpRequestParser(
            SimpleNamespace(
                on_body=self.on_body,
                on_chunk_header=self.on_chunk_header,
                on_message_complete=self.on_message_complete,
            )
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
        self._unread = self._in_head = True
        self._head = self._headers = 0
        self._phase += 1
        self._watch()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.limits.target:
            raise _Refused(414, "target", f"path and query take more than {self.limits.target} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._head += len(name) + len(value) + 4
        if self._headers > self.limits.headers:
            raise _Refused(431, "head", f"the request has more than {self.limits.headers} headers")
        if self._head + len(self.url) > self.limits.head:
            raise self._too_long()
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise _Refused(400, "host", f"the request has {hosts} Host headers, not one")
        self._unwatch()
        self._in_head = False
        self._phase += 1
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what comes after its body is not read

    def on_chunk_header(self) -> None:
        self._content += CHUNK

    def on_body(self, body: bytes) -> None:
        self._content += len(body)
        cycle = self.cycle
        if cycle.response_complete or not self._unread:  # refused; or of a request behind one that asked to upgrade
            return
        if not cycle.body:
            # in one piece, as images mostly are: uvicorn would copy it twice, and stop and start reading
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
        self._phase += 1
        super().on_message_complete()
        if self.cycle.response_complete:  # it was refused, and has been read to its end: the connection is idle now
            self._unwatch()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def close(self) -> None:
        """Close the connection, and where a request is still being sent, let the client read the answer first.

        To close a socket with unread data in it resets the connection, and the client may lose its answer.
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
        self._timer = self.loop.call_later(self.limits.seconds, self._too_slow)

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
