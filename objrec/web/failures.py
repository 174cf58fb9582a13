"""Why a URL gave nothing usable, in one word for the manifest and one line for people."""

from __future__ import annotations

import socket
import time
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from objrec.web.addresses import RefusedAddress

RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})


class FetchError(Exception):
    """A URL that gave nothing usable.

    Attributes:
        status: a word for the manifest.
        reason: for people.
        transient: it may succeed in a moment.
        wait: seconds that the server asked to wait, if it did.
    """

    def __init__(self, status: str, reason: str, *, transient: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status, self.reason, self.transient, self.wait = status, reason, transient, wait


def retry_after(value: str | None) -> float | None:
    """Seconds from a ``Retry-After`` header, which may be a number or a date; None where it says nothing sensible."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def http_error(status: int, wait: str | None) -> FetchError:
    return FetchError(f"http_{status}", f"HTTP {status}", transient=status in RETRIED, wait=retry_after(wait))


def network_error(error: BaseException) -> FetchError:
    """Name what went wrong below HTTP."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = next((str(e) for e in chain if str(e)), type(error).__name__)[:200]
    if refused := next((e for e in chain if isinstance(e, RefusedAddress)), None):
        return FetchError("refused_address", str(refused))
    if isinstance(error, TimeoutError):
        return FetchError("timeout", "took too long", transient=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        asked_again = any(isinstance(e, socket.gaierror) and e.errno == socket.EAI_AGAIN for e in chain)
        return FetchError("dns", text, transient=asked_again)
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", text)
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return FetchError("refused_address", f"not a usable URL: {text}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("truncated", text, transient=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("protocol", text)
    return FetchError("connection", text, transient=True)
