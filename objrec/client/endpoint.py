"""A client of our endpoint, and the download of images by address. Standard library only.

urllib3 was measured beside it: its import takes twice as long as that of ``http.client`` and ``urllib.request``
together, and its timeouts begin anew with every piece that arrives, so an endpoint that sends a byte a second would
need ``_Timed`` all the same.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import weakref
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from objrec.client.output import printable
from objrec.config.errors import UserError
from objrec.images.decode import ImageError

MAX_ANSWER = 16_000_000  # bytes; an endpoint of ours answers with some hundreds
SECONDS = 30.0  # for a connection, and between two pieces of an answer
DEADLINE = 60.0  # seconds for an answer in all
TRIES = 5  # for an answer of 429 or 503, which say when to come again, or a connection that broke


class TooLarge(OSError):
    """More bytes than are taken."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"larger than {limit} bytes")


class _Timed(io.RawIOBase):
    """What a socket receives, until the deadline: its own timeout begins anew with every piece."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._raw = sock, sock.makefile("rb", buffering=0)
        self._until = time.monotonic() + DEADLINE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no whole answer in {DEADLINE:.0f} s")
        self._sock.settimeout(min(SECONDS, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer that ends in time."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock))

    def read(self, amt: int | None = None) -> bytes:
        """Read at most ``MAX_ANSWER`` + 1: urllib reads the body of a redirection as a whole."""
        return super().read(MAX_ANSWER + 1 if amt is None else amt)

    def whole(self, limit: int) -> bytes:
        """Return the body. Raises TooLarge, and HTTPException where it ends early."""
        content = self.read(limit + 1)
        if len(content) > limit:
            raise TooLarge(limit)
        if self.length:  # what the other side still owes
            raise IncompleteRead(content, self.length)
        return content


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class EndpointClient:
    """An endpoint of ours. Safe to use from many threads: each keeps a connection of its own.

    Args:
        url: its address, with or without ``/score``.
        key: sent as ``Authorization: Bearer``, which a managed endpoint in the cloud takes too.

    Raises:
        UserError: for an address that is no http or https URL, or a key that no header can carry.
    """

    def __init__(self, url: str, *, key: str | None = None, top_k: int = 5, unknown: bool = False) -> None:
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise ValueError
            parts.hostname.encode("idna")
            HTTPConnection(parts.hostname, parts.port)  # it checks the host, and connects to nothing yet
            path = quote(parts.path, safe="/%~:@!$&'()*+,;=").rstrip("/")
        except (ValueError, HTTPException):
            raise UserError(f"--endpoint {printable(url)}: should be an address like http://127.0.0.1:8000") from None
        if key and not (key.isascii() and key.isprintable()):
            raise UserError("--key, or OBJREC_KEY: should be of printable ASCII characters only, without line breaks")
        kind = _SecureConnection if parts.scheme == "https" else _Connection
        self._open = functools.partial(kind, parts.hostname, parts.port, timeout=SECONDS)
        self.url = printable(url)
        path = path if path.endswith("/score") else f"{path}/score"
        self._path = f"{path}?{urlencode({'top_k': top_k, **({'unknown': 'true'} if unknown else {})})}"
        self._headers = {"Content-Type": "application/octet-stream", "User-Agent": "objrec-predict"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._own = threading.local()

    def classify(self, data: bytes) -> tuple[list[tuple[str, float]], str, bool]:
        """Return (label, probability), best first, the model's version, and whether it is none of the classes.

        Raises:
            ImageError: the endpoint refused this image.
            UserError: it does not answer, wants a key, or is no endpoint of ours.
        """
        status, answer = self._ask(data)
        given = answer.get("reason")
        reason = printable(given[:200]) if isinstance(given, str) else f"status {status}"
        if status in (401, 403):
            raise UserError(f"{self.url}: {reason}: use --key, or set OBJREC_KEY")
        if 400 <= status < 500 and isinstance(given, str) and status not in (404, 405, 429):
            raise ImageError("corrupt", f"{reason} ({status})")
        found = _answered(answer)
        if found is None:
            cure = ": check the address" if status < 429 else ""
            raise UserError(f"{self.url} does not answer as an endpoint does: {reason}{cure}")
        return found

    def _ask(self, data: bytes) -> tuple[int, dict[str, Any]]:
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                status, after, content = self._once(data)
            except (OSError, HTTPException) as error:
                self._own.connection.close()  # the next request opens it again
                if last or isinstance(error, (ConnectionRefusedError, TooLarge)):
                    raise UserError(f"{self.url} does not answer: {printable(str(error) or repr(error))}") from None
                continue
            if status not in (429, 503) or last:
                break
            time.sleep(min(float(after) if after.isdecimal() and after.isascii() else 1.0, 10.0))
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    def _once(self, data: bytes) -> tuple[int, str, bytes]:
        connection: HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._open()
            weakref.finalize(self._own, connection.close)
        if connection.sock is None:
            connection.connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it had all
            connection.request("POST", self._path, data, self._headers)
        response = cast(_Answer, connection.getresponse())
        content = response.whole(MAX_ANSWER)
        if response.headers.get("connection", "").lower() == "close":
            connection.close()
        return response.status, response.headers.get("retry-after", ""), content


def _answered(answer: dict[str, Any]) -> tuple[list[tuple[str, float]], str, bool] | None:
    """Return what ``EndpointClient.classify`` does; None where this is not what an endpoint of ours answers."""
    try:
        predictions = [(p["label"], p["probability"]) for p in answer["predictions"]]
        version, label = answer["model_version"], answer["label"]
    except (KeyError, TypeError):
        return None
    if not predictions or not isinstance(version, str) or not isinstance(label, str | None):
        return None
    for name, probability in predictions:
        if not isinstance(name, str) or type(probability) not in (int, float) or not 0 <= probability <= 1:
            return None  # NaN too
    return predictions, version, label is None


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_SecureConnection, req)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https, and nothing else that an address may redirect to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Http(),
        _Https(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def download(url: str, *, max_bytes: int) -> bytes:
    """Fetch an image by an address that the user typed. Raises OSError, also for one that is too large or too slow."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "objrec-predict", "Accept": "image/*"})
        with _opener().open(request, timeout=SECONDS) as response:
            return cast(_Answer, response).whole(max_bytes)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"status {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    except (HTTPException, ValueError) as error:
        raise OSError(f"cannot be fetched: {error}") from None
