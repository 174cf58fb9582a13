"""Fetch from the open web: bounded in bytes and time, polite to hosts, wary of where a URL leads."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self
from urllib.request import getproxies

import aiohttp
from yarl import URL

from objrec import __version__
from objrec.config.errors import UserError
from objrec.ingest.addresses import PublicResolver, RefusedAddress, check_url
from objrec.ingest.robots import Robots, refusal

MAX_REDIRECTS: Final = 5
RETRIED: Final = frozenset({429, 500, 502, 503, 504})
CHUNK: Final = 1 << 16


class FetchError(Exception):
    """A URL that gave nothing usable.

    Attributes:
        status: a word for the manifest.
        reason: for people.
        transient: it may succeed another time.
        wait: seconds that the server asked to wait, if it did.
    """

    def __init__(self, status: str, reason: str, *, transient: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status, self.reason, self.transient, self.wait = status, reason, transient, wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a download may take.

    Attributes:
        timeout: seconds for one URL: all attempts, redirects and pauses between them, but not the wait for a free slot.
        max_bytes: of a body, compressed or not.
        retries: attempts after the first, and only for what may succeed later.
        max_wait: a longer ``Retry-After`` is not waited for.
        connections: at once.
        connections_per_host: at once.
        host_rate: requests a second to one host, or None.
    """

    timeout: float
    max_bytes: int
    retries: int
    max_wait: float
    connections: int
    connections_per_host: int
    host_rate: float | None
    robots: bool
    allow_private_addresses: bool


@dataclass(slots=True)
class _Host:
    slots: asyncio.Semaphore
    interval: float
    next_start: float = 0.0  # on the clock of time.monotonic
    robots: asyncio.Task[Robots | None] | None = None


@dataclass(slots=True)
class _Budget:
    """Seconds that a URL may still take; the wait for a free slot is not counted."""

    left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response that was read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Downloader:
    """An HTTP client for unknown servers; use as an async context manager.

    Args:
        limits: of every download.
        contact: the operator's address or URL, for the User-Agent.
        host_limits: hosts that allow fewer connections than the rest.
    """

    def __init__(self, limits: Limits, *, contact: str | None, host_limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._host_limits = host_limits
        self._hosts: dict[str, _Host] = {}
        about = f" ({contact})" if contact else ""
        self.user_agent = f"objrec/{__version__}{about} aiohttp/{aiohttp.__version__}"

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,  # slots are counted here, per host and in all, so that waiting costs no one's time
            resolver=None if self._limits.allow_private_addresses else PublicResolver(),
            ttl_dns_cache=300,
        )
        self._slots = asyncio.Semaphore(self._limits.connections)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # inflated here, up to a limit
            trust_env=bool(getproxies()),  # else every request would look for a .netrc, in a thread
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self.user_agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),
            max_line_size=16384,
            max_field_size=16384,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        pending = [h.robots for h in self._hosts.values() if h.robots and not h.robots.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._session.close()

    async def fetch(self, url: str) -> bytes:
        """Return the body behind ``url``, following redirects, with everything checked.

        Raises:
            FetchError: with the reason of the last attempt.
        """
        budget = _Budget(self._limits.timeout)
        for attempt in range(self._limits.retries + 1):
            try:
                return await self._follow(url, budget)
            except FetchError as error:
                pause = self._pause(error, attempt, budget.left)
                if pause is None:
                    raise
                budget.left -= pause
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def request(
        self, method: str, url: str, *, interval: float, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> Reply:
        """Ask a service: any status is an answer; 429 and 5xx are tried again until ``max_wait`` is spent.

        Args:
            interval: seconds between calls to that host.

        Raises:
            FetchError: no answer could be had.
        """
        parsed = self._checked(url)
        host = self._host(parsed)
        host.interval = max(interval, 0.0)
        waited = 0.0
        for attempt in range(self._limits.retries + 1):
            reply: Reply | None = None
            try:
                call = self._session.request(method, parsed, headers=headers, data=data, allow_redirects=False)
                async with self._turn(host), asyncio.timeout(self._limits.timeout), call as response:
                    body = await self._body(response)
                    reply = Reply(status=response.status, headers=_lower(response.headers), body=body)
                if reply.status not in RETRIED:
                    return reply
                error = _http_error(reply.status, reply.headers.get("retry-after"))
            except (TimeoutError, aiohttp.ClientError, OSError) as problem:
                error = _network_error(problem)
            pause = self._pause(error, attempt, self._limits.max_wait - waited)
            if pause is None:
                if reply is not None:
                    return reply
                raise error
            waited += pause
            host.next_start = max(host.next_start, time.monotonic() + pause)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, error: FetchError, attempt: int, left: float) -> float | None:
        """Seconds to wait before another attempt, or None where there is to be none."""
        if not error.transient or attempt >= self._limits.retries:
            return None
        pause = 0.5 * 2**attempt * random.uniform(0.5, 1.5)
        if error.wait is not None:
            if error.wait > self._limits.max_wait:
                error.reason += f", asks to wait {error.wait:.0f} s"
                return None
            pause = max(error.wait, pause) if error.wait else pause
        return pause if pause < left else None

    async def _follow(self, url: str, budget: _Budget) -> bytes:
        """One attempt: redirects are followed by hand, each target checked like the first."""
        parsed = self._checked(url)
        for _ in range(MAX_REDIRECTS + 1):
            host = self._host(parsed)
            if self._limits.robots and not await self._robots_allow(host, parsed):
                raise FetchError("robots", f"robots.txt of {parsed.host} asks robots to stay away")
            async with self._turn(host):
                answer = await self._get(parsed, host, budget)
            if isinstance(answer, bytes):
                return answer
            parsed = self._checked(answer)
        raise FetchError("redirect", f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: URL, host: _Host, budget: _Budget) -> bytes | URL:
        """Return the body, or where a redirect leads."""
        started = time.monotonic()
        try:
            async with (
                asyncio.timeout(max(0.0, budget.left)),
                self._session.get(url, allow_redirects=False) as response,
            ):
                if response.status in (301, 302, 303, 307, 308):
                    return _target(url, response.headers.get("Location"))
                if response.status != 200:
                    error = _http_error(response.status, response.headers.get("Retry-After"))
                    if response.status in (429, 503) and error.wait and error.wait <= self._limits.max_wait:
                        host.next_start = max(host.next_start, time.monotonic() + error.wait)  # everyone waits
                    raise error
                directive = refusal(response.headers.getall("X-Robots-Tag", ()))
                if directive and self._limits.robots:
                    raise FetchError("robots", f"X-Robots-Tag: {directive}")
                return await self._body(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _network_error(error) from error
        finally:
            budget.left -= time.monotonic() - started

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """Read a body and stop at the byte limit; a coded one is inflated up to the same limit."""
        limit = self._limits.max_bytes
        if (response.content_length or 0) > limit:
            raise FetchError("too_large", f"{response.content_length} bytes declared, more than {limit}")
        inflate = _inflater(response.headers.get("Content-Encoding"))
        parts, size = [], 0
        async for chunk in response.content.iter_chunked(CHUNK):
            try:
                data = inflate.decompress(chunk, limit - size + 1) if inflate else chunk
            except zlib.error as error:
                raise FetchError("corrupt", f"content encoding: {error}") from None
            size += len(data)
            if size > limit:
                raise FetchError("too_large", f"more than {limit} bytes")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _checked(self, url: str | URL) -> URL:
        try:
            return check_url(url, allow_private=self._limits.allow_private_addresses)
        except RefusedAddress as error:
            raise _network_error(error) from None

    def _host(self, url: URL) -> _Host:
        key = f"{url.scheme}://{url.host}:{url.port}"
        if key not in self._hosts:
            slots = min(self._limits.connections_per_host, self._host_limits.get(url.host or "", 1000))
            rate = self._limits.host_rate
            self._hosts[key] = _Host(asyncio.Semaphore(slots), 1 / rate if rate else 0.0)
        return self._hosts[key]

    @contextlib.asynccontextmanager
    async def _turn(self, host: _Host) -> AsyncIterator[None]:
        """Wait for a connection to the host, for its pace, and for a connection at all, in this order."""
        async with host.slots:
            while (wait := host.next_start - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            host.next_start = max(host.next_start, time.monotonic()) + host.interval
            async with self._slots:
                yield

    async def _robots_allow(self, host: _Host, url: URL) -> bool:
        if host.robots is None:
            host.robots = asyncio.create_task(self._read_robots(host, url.origin() / "robots.txt"))
        rules = host.robots.result() if host.robots.done() else await asyncio.shield(host.robots)
        return rules is not None and rules.allows(url.raw_path_qs)

    async def _read_robots(self, host: _Host, url: URL) -> Robots | None:
        """Rules of a host; None where RFC 9309 says to stay away, because the server failed to answer."""
        budget = _Budget(self._limits.timeout)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                async with self._turn(host):
                    answer = await self._get(url, host, budget)
                if isinstance(answer, bytes):
                    return Robots(answer[:500_000].decode(errors="replace"))
                url = self._checked(answer)
        except FetchError as error:
            if error.status.startswith("http_5"):
                return None
        return Robots("")  # there is none, or the host cannot be reached: then the picture will tell why


def require_contact(contact: str | None, why: str) -> str:
    """Return the operator's contact. Raises UserError where it is missing or no address."""
    if contact is None or not ("@" in contact or contact.startswith(("http://", "https://"))):
        raise UserError(f"ingest.contact: {why}: ingest.contact=me@example.org (an address or a URL of yours)")
    return contact


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
    except (ValueError, TypeError, OverflowError):
        return None


def _http_error(status: int, wait: str | None) -> FetchError:
    return FetchError(f"http_{status}", f"HTTP {status}", transient=status in RETRIED, wait=retry_after(wait))


def _network_error(error: BaseException) -> FetchError:
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
        return FetchError("dns", text)
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", text)
    if isinstance(error, (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
        return FetchError("refused_address", f"not a usable URL: {text}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("truncated", text, transient=True)
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("protocol", text)
    return FetchError("connection", text, transient=True)


def _target(url: URL, location: str | None) -> URL:
    if not location:
        raise FetchError("redirect", "a redirect without a target")
    try:
        return url.join(URL(location))
    except ValueError as error:
        raise FetchError("redirect", f"to no URL: {error}") from None


def _inflater(coding: str | None) -> Any:
    """A bounded decompressor for a Content-Encoding that was not asked for."""
    if coding in (None, "", "identity"):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise FetchError("unsupported", f"content encoding {coding}")


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {k.lower(): v for k, v in headers.items()}
