"""Which URLs may be fetched: http and https to public addresses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_URL: Final = 16_384  # characters; a longer one fits into few servers' request lines
REMOVED: Final = dict.fromkeys(map(ord, "\t\r\n"))  # as browsers do
ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
NOT_PUBLIC_4: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' own, and 100.100.100.200 of Alibaba Cloud
            "127.0.0.0/8",
            "168.63.129.16/32",  # the wire server of every Azure VM
            "169.254.0.0/16",  # link-local, with the metadata services of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments, and 192.0.0.192 of Oracle Cloud
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")  # all that is in use as public; outside: ::1, fc00::/7, ...
NOT_PUBLIC_6: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "3ffe::/16",  # 6bone
            "3fff::/20",  # documentation
        ),
    )
)
WRAPPERS: Final = tuple(  # of IPv4 addresses, which decide
    map(ipaddress.IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "2001::/32", "2002::/16"))
)


class RefusedAddress(OSError):
    """A URL or an address that must not be contacted."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, looking through IPv4 addresses wrapped in IPv6.

    By lists of our own: ``ipaddress.is_global`` changes between versions of Python, and knows no cloud's own addresses.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not _in(found, NOT_PUBLIC_4)
    inner = _wrapped(found)
    if inner and _in(found, WRAPPERS):
        return all(is_public(str(i)) for i in inner)
    return found in GLOBAL_UNICAST and not _in(found, NOT_PUBLIC_6) and all(is_public(str(i)) for i in inner)


def _in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _wrapped(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to an IPv6 address may come to."""
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.teredo:
        return list(address.teredo)
    if address.sixtofour:
        return [address.sixtofour]
    is_isatap = (number >> 32) & 0xFDFFFFFF == 0x00005EFE
    return [last] if is_isatap or _in(address, WRAPPERS) else []


def check_url(url: str | URL, *, allow_private: bool) -> URL:
    """Parse a URL that is about to be fetched. The result spells path and query as they were given, for signed URLs.

    Only what may not stand in a request at all (spaces, control characters, letters beyond ASCII) is escaped.

    Raises:
        RefusedAddress: it is not http(s), has no host, carries a user name, is too long, or names a private address.
    """
    text = str(url)
    if len(text) > MAX_URL:
        raise RefusedAddress(f"a URL of more than {MAX_URL} characters")
    text = text.strip().translate(REMOVED)
    try:
        parsed = URL(text)
        host, port = parsed.host, parsed.port
        if parsed.scheme not in ("http", "https") or not host or not port:
            raise RefusedAddress(f"not an http or https URL: {str(parsed)[:100]}")
        if parsed.user is not None or parsed.password is not None:
            raise RefusedAddress("the URL carries a user name")
        sent = URL(f"{parsed.scheme}://{parsed.raw_authority}{_tail(text)}", encoded=True)
        if sent.raw_host != parsed.raw_host or sent.port != port:
            raise RefusedAddress("its host can be read in two ways")
    except (ValueError, TypeError) as error:
        raise RefusedAddress(f"not a URL: {str(error)[:100]}") from None
    try:
        if b"\0" in host.encode("idna"):
            raise UnicodeError("it holds a zero byte")
    except UnicodeError as error:  # which the resolver would raise
        raise RefusedAddress(f"not a host name: {str(error)[:100]}") from None
    if not allow_private:
        check_host(sent.raw_host or "")
    return sent


def _tail(text: str) -> str:
    """Path and query of a URL."""
    _, _, rest = text.partition("#")[0].partition("://")
    start = min((i for i in map(rest.find, "/?") if i >= 0), default=len(rest))
    tail = quote(rest[start:], safe=ASCII, errors="surrogateescape")
    return tail if tail.startswith("/") else f"/{tail}"


def check_host(host: str) -> None:
    """Refuse numeric private addresses, in any notation that the system's resolver understands ('127.1', '0x7f.1')."""
    try:
        numeric = ipaddress.ip_address(host).compressed
    except ValueError:
        try:
            numeric = socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return  # a name: the resolver checks what it stands for
    if not is_public(numeric):
        raise RefusedAddress(f"{host} is not a public address")


class PublicResolver(AbstractResolver):
    """Resolves names and refuses those that stand for any private address.

    The check is on the very answer that the connection uses, so that a name cannot change between check and use.
    """

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET, **more: Any
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family, **more)
        if private := [r["host"] for r in found if not is_public(r["host"])]:
            raise RefusedAddress(f"{host} stands for {private[0]}, which is not a public address")
        return found

    async def close(self) -> None:
        await self._resolver.close()
