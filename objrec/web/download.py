"""Fetch from the open web: bounded in bytes and time, polite to hosts, wary of where a URL leads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar
from urllib.parse import urljoin
from urllib.request import getproxies

import aiohttp
from yarl import URL

from objrec import __version__
from objrec.config.errors import UserError
from objrec.web.addresses import PublicResolver, RefusedAddress, check_url
from objrec.web.coding import KNOWN, CodingError, Inflater
from objrec.web.failures import RETRIED, FetchError, http_error, network_error
from objrec.web.robots import Robots, refusal

MAX_REDIRECTS: Final = 5
CHUNK: Final = 1 << 16
ROBOTS_BYTES: Final = 500 << 10  # of a robots.txt that are read, as RFC 9309 says
ROBOTS_AGAIN: Final = 60.0  # seconds after which a robots.txt that could not be read is asked for again
T = TypeVar("T")
UNREACHABLE: Final = ("dns", "connection", "tls", "refused_address")  # nothing of the host can be had


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
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
    """Whose turn it is at a host: at its images, or at a service's calls, which have a pace of their own.

    Attributes:
        next_start: on the clock of time.monotonic.
        robots: gives the rules, or why there are none to be had; they hold until ``robots_until``.
    """

    slots: asyncio.Semaphore
    next_start: float = 0.0
    robots: asyncio.Task[Robots | FetchError] | None = None
    robots_until: float = math.inf


@dataclass(slots=True)
class _Budget:
    """Seconds that a URL may still take; the wait for a free slot is not counted."""

    left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response that was read to its end.

    Attributes:
        headers: with names in lower case.
        waited: seconds that were waited before the last attempt because the service was busy.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    waited: float = 0.0


class Downloader:
    """An HTTP client for unknown servers; use as an async context manager.

    Args:
        limits: of every download.
        contact: the operator's address or URL, for the User-Agent.
        host_limits: hosts that allow fewer connections than the rest.
    """

    def __init__(self, limits: DownloadLimits, *, contact: str | None, host_limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._host_limits = host_limits
        self._interval = 1 / limits.host_rate if limits.host_rate else 0.0
        self._hosts: dict[str, _Host] = {}
        self._services: dict[str, _Host] = {}
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
        return await self._patiently(lambda: self._follow(url, budget), budget)

    async def request(
        self,
        method: str,
        url: str,
        *,
        interval: float,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
        busy: Callable[[Reply], bool] = lambda reply: False,
    ) -> Reply:
        """Ask a service: any status is an answer.

        A busy service (429, 503) is asked again, after the time that it names, until ``max_wait`` is spent; what else
        may succeed in a moment, ``retries`` times.

        Args:
            interval: seconds between calls to that service; images of the same host have a pace of their own.
            busy: whether a reply says so in another way.

        Raises:
            FetchError: no answer could be had.
        """
        parsed = self._checked(url)
        host = self._host(parsed, self._services)
        waited = 0.0
        for attempt in itertools.count():
            reply: Reply | None = None
            try:
                call = self._session.request(method, parsed, headers=headers, data=data, allow_redirects=False)
                async with self._turn(host, max(interval, 0.0)), asyncio.timeout(self._limits.timeout), call as answer:
                    body = await self._body(answer)
                    reply = Reply(status=answer.status, headers=_lower(answer.headers), body=body, waited=waited)
                is_busy = reply.status in (429, 503) or busy(reply)
                if reply.status not in RETRIED and not is_busy:
                    return reply
                error = http_error(reply.status, reply.headers.get("retry-after"))
            except (TimeoutError, aiohttp.ClientError, OSError) as problem:
                error, is_busy = network_error(problem), False
            pause = error.wait if error.wait and error.wait >= 1 else _backoff(attempt)
            may = is_busy or (error.transient and attempt < self._limits.retries)
            if not may or waited + pause > self._limits.max_wait:
                if reply is not None:
                    return reply
                raise error
            waited += pause
            host.next_start = max(host.next_start, time.monotonic() + pause)
        raise AssertionError("a wait that grows comes to an end")

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], budget: _Budget) -> T:
        """Try again where that may help, within the budget."""
        for tried in range(self._limits.retries + 1):
            try:
                return await attempt()
            except FetchError as error:
                pause = self._pause(error, tried, budget.left)
                if pause is None:
                    raise
                budget.left -= pause
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, error: FetchError, attempt: int, left: float) -> float | None:
        """Seconds to wait before another attempt, or None where there is to be none."""
        if not error.transient or attempt >= self._limits.retries:
            return None
        pause = _backoff(attempt)
        if error.wait is not None:
            if error.wait > self._limits.max_wait:
                error.reason += f", asks to wait {error.wait:.0f} s"
                return None
            pause = max(error.wait, pause) if error.wait else pause
        return pause if pause < left else None

    async def _follow(self, url: str, budget: _Budget) -> bytes:
        """One attempt: redirects are followed by hand, each target checked like the first."""
        for _ in range(MAX_REDIRECTS + 1):
            parsed = self._checked(url)
            host = self._host(parsed, self._hosts)
            if self._limits.robots:
                await self._heed_robots(host, parsed)
            async with self._turn(host, self._interval):
                answer = await self._get(parsed, host, budget)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise FetchError("redirect", f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, url: URL, host: _Host, budget: _Budget, *, robots_txt: bool = False) -> bytes | str:
        """Return the body, or where a redirect leads.

        Args:
            robots_txt: read the first ROBOTS_BYTES and leave the rest; ``X-Robots-Tag`` says nothing about it.
        """
        started = time.monotonic()
        try:
            async with (
                asyncio.timeout(max(0.0, budget.left)),
                self._session.get(url, allow_redirects=False) as response,
            ):
                if response.status in (301, 302, 303, 307, 308):
                    return redirect_target(url, response.headers.get("Location"))
                if response.status != 200:
                    error = http_error(response.status, response.headers.get("Retry-After"))
                    if response.status in (429, 503) and error.wait and error.wait <= self._limits.max_wait:
                        host.next_start = max(host.next_start, time.monotonic() + error.wait)  # everyone waits
                    raise error
                directive = refusal(response.headers.getall("X-Robots-Tag", ()))
                if directive and self._limits.robots and not robots_txt:
                    raise FetchError("robots", f"X-Robots-Tag: {directive}")
                return await self._body(response, first=ROBOTS_BYTES if robots_txt else None)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise network_error(error) from error
        finally:
            budget.left -= time.monotonic() - started

    async def _body(self, response: aiohttp.ClientResponse, *, first: int | None = None) -> bytes:
        """Read a body and stop at the byte limit; a coded one is inflated up to the same limit.

        Args:
            first: take this many bytes at most and leave the rest, whatever the limit.
        """
        limit = self._limits.max_bytes if first is None else first
        if first is None and (response.content_length or 0) > limit:
            raise FetchError("too_large", f"{response.content_length} bytes declared, more than {limit}")
        inflater = _inflater(response.headers.getall("Content-Encoding", ()))
        parts, size, received = [], 0, 0
        async for chunk in response.content.iter_chunked(CHUNK):
            try:
                data = inflater.inflate(chunk, limit - size + 1) if inflater else chunk
            except CodingError as error:
                raise FetchError("corrupt", str(error)) from None
            parts.append(data)
            size, received = size + len(data), received + len(chunk)
            if max(size, received) > limit:  # a gzip body may be endless and decode to nothing
                if first is None:
                    raise FetchError("too_large", f"more than {limit} bytes")
                return b"".join(parts)[:first]
        if inflater and not inflater.finished:
            raise FetchError("truncated", "the compressed body ends early", transient=True)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _checked(self, url: str | URL) -> URL:
        try:
            return check_url(url, allow_private=self._limits.allow_private_addresses)
        except RefusedAddress as error:
            raise network_error(error) from None

    def _host(self, url: URL, hosts: dict[str, _Host]) -> _Host:
        key = f"{url.scheme}://{url.host}:{url.port}"
        if key not in hosts:
            slots = min(self._limits.connections_per_host, self._host_limits.get(url.host or "", 1000))
            hosts[key] = _Host(asyncio.Semaphore(slots))
        return hosts[key]

    @contextlib.asynccontextmanager
    async def _turn(self, host: _Host, interval: float) -> AsyncIterator[None]:
        """Wait for a connection to the host, for its pace, and for a connection at all, in this order."""
        async with host.slots:
            while (wait := host.next_start - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            host.next_start = max(host.next_start, time.monotonic()) + interval
            async with self._slots:
                yield

    async def _heed_robots(self, host: _Host, url: URL) -> None:
        """Raise FetchError where the host's robots.txt forbids the URL, or could not be had: that means no, too."""
        if host.robots is None or (host.robots.done() and time.monotonic() > host.robots_until):
            host.robots = asyncio.create_task(self._read_robots(host, f"{url.origin()}/robots.txt"))
        rules = host.robots.result() if host.robots.done() else await asyncio.shield(host.robots)
        if isinstance(rules, FetchError):
            if rules.status in UNREACHABLE:
                raise FetchError(rules.status, f"robots.txt of {url.host}: {rules.reason}")
            raise FetchError("robots", f"robots.txt of {url.host} could not be read ({rules.reason}): that means no")
        path = url.raw_path_qs
        if not (await asyncio.to_thread(rules.allows, path) if rules.is_slow_for(path) else rules.allows(path)):
            raise FetchError("robots", f"robots.txt of {url.host} asks robots to stay away")

    async def _read_robots(self, host: _Host, url: str) -> Robots | FetchError:
        """Rules of a host, as RFC 9309 says: none where there is no file (4xx), else why it could not be read."""
        budget = _Budget(self._limits.timeout)
        try:
            found = Robots(await self._patiently(lambda: self._robots_text(url, budget), budget))
        except FetchError as error:
            if error.status.startswith("http_4") and error.status not in ("http_408", "http_429"):
                found = Robots("")
            else:
                host.robots_until = time.monotonic() + ROBOTS_AGAIN
                return error
        host.robots_until = math.inf
        return found

    async def _robots_text(self, url: str, budget: _Budget) -> str:
        for _ in range(MAX_REDIRECTS + 1):
            parsed = self._checked(url)
            host = self._host(parsed, self._hosts)
            async with self._turn(host, self._interval):
                answer = await self._get(parsed, host, budget, robots_txt=True)
            if isinstance(answer, bytes):
                if len(answer) == ROBOTS_BYTES:  # the last line may have been cut off
                    answer = answer[: max(answer.rfind(b"\n"), answer.rfind(b"\r")) + 1]
                return answer.decode(errors="replace")
            url = answer
        return ""  # by RFC 9309 there is none behind so many redirects


def require_contact(contact: str | None, why: str) -> str:
    """Return the operator's contact. Raises UserError where it is missing or no address."""
    if contact is None or not ("@" in contact or contact.startswith(("http://", "https://"))):
        raise UserError(f"ingest.contact: {why}: ingest.contact=me@example.org (an address or a URL of yours)")
    return contact


def _backoff(attempt: int) -> float:
    """Seconds before another attempt: twice as many each time, up to a minute, and never all at the same moment."""
    return random.uniform(0.5, 1.5) * 0.5 * 2.0 ** min(attempt, 7)


def redirect_target(url: URL, location: str | None) -> str:
    """Where a redirect leads, spelled as it was given."""
    if not location:
        raise FetchError("redirect", "a redirect without a target")
    try:
        return urljoin(str(url), location)
    except ValueError as error:
        raise FetchError("redirect", f"to no URL: {error}") from None


def _inflater(headers: Sequence[str]) -> Inflater | None:
    """What undoes the Content-Encoding headers, which were not asked for."""
    codings = [c for h in headers for c in h.lower().replace(" ", "").split(",") if c not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in KNOWN:
        raise FetchError("unsupported", f"content encoding {', '.join(codings)[:100]}")
    return Inflater(codings[0])


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {k.lower(): v for k, v in headers.items()}
