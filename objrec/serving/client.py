"""The other side: an endpoint asked from here, and pictures fetched by address. Standard library only."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
import weakref
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from objrec.config.errors import UserError
from objrec.images.decode import ImageError

MAX_BYTES = 50_000_000
SECONDS = 30.0
TRIES = 5  # for an answer of 429 or 503, which say when to come again, or a connection that broke


class Endpoint:
    """An endpoint of ours. Safe to use from many threads: each keeps a connection of its own.

    Args:
        url: its address, with or without ``/score``.
        key: sent as ``Authorization: Bearer``, which a managed endpoint in the cloud takes too.

    Raises:
        UserError: for an address that is no http or https URL.
    """

    def __init__(self, url: str, *, key: str | None = None, top_k: int = 5, unknown: bool = False) -> None:
        parts = urlsplit(url)
        try:
            valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            valid = False
        if not valid:
            raise UserError(f"--endpoint {url}: should be an address like http://127.0.0.1:8000")
        self.url = url
        path = parts.path.rstrip("/")
        path = path if path.endswith("/score") else f"{path}/score"
        self._path = f"{path}?{urlencode({'top_k': top_k, **({'unknown': 'true'} if unknown else {})})}"
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._headers = {"Content-Type": "application/octet-stream", "User-Agent": "objrec-predict"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._own = threading.local()

    def classify(self, data: bytes) -> tuple[list[tuple[str, float]], str, bool]:
        """Return (label, probability), best first, the model's version, and whether it is none of the classes.

        Raises:
            ImageError: the endpoint refused this picture.
            UserError: it does not answer, wants a key, or is no endpoint of ours.
        """
        status, answer = self._ask(data)
        reason = answer.get("reason") or f"status {status}"
        if status in (401, 403):
            raise UserError(f"{self.url}: {reason}: use --key, or set OBJREC_KEY")
        if 400 <= status < 500 and "reason" in answer and status not in (404, 405, 429):
            raise ImageError("corrupt", f"{reason} ({status})")
        try:
            predictions = [(p["label"], p["probability"]) for p in answer["predictions"]]
            return predictions, answer["model_version"], answer["label"] is None
        except (KeyError, TypeError):
            raise UserError(f"{self.url} does not answer as an endpoint does: {reason}") from None

    def _ask(self, data: bytes) -> tuple[int, dict[str, Any]]:
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                status, after, content = self._once(data)
            except (OSError, HTTPException) as error:
                self._own.connection.close()  # the next request opens it again
                if last or isinstance(error, ConnectionRefusedError):
                    raise UserError(f"{self.url} does not answer: {error}") from None
                continue
            if status not in (429, 503) or last:
                break
            time.sleep(min(float(after) if after.isdigit() else 1.0, 10.0))
        try:
            answer = json.loads(content)
        except ValueError:
            answer = {}
        return status, answer if isinstance(answer, dict) else {}

    def _once(self, data: bytes) -> tuple[int, str, bytes]:
        connection: HTTPConnection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._kind(self._host, self._port, timeout=SECONDS)
            weakref.finalize(self._own, connection.close)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it had all
            connection.request("POST", self._path, data, self._headers)
        response: HTTPResponse = connection.getresponse()
        content = response.read()
        if response.headers.get("connection", "").lower() == "close":
            connection.close()
        return response.status, response.headers.get("retry-after", ""), content


def download(url: str) -> bytes:
    """Fetch a picture by an address that the user typed. Raises OSError, also for one that is too large."""
    request = urllib.request.Request(url, headers={"User-Agent": "objrec-predict", "Accept": "image/*"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"status {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    except (HTTPException, ValueError) as error:
        raise OSError(f"cannot be fetched: {error}") from None
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES} bytes")
    return data
