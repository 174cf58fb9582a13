"""Which URLs may be fetched: http and https to public addresses."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL


class RefusedAddress(OSError):
    """A URL or an address that must not be contacted."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, looking through IPv4 addresses wrapped in IPv6."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def check_url(url: str | URL, *, allow_private: bool) -> URL:
    """Parse a URL that is about to be fetched.

    Raises:
        RefusedAddress: it is not http(s), has no host, carries a user name, or names a private address.
    """
    try:
        parsed = URL(url)
        host, port = parsed.host, parsed.port
    except (ValueError, TypeError) as error:
        raise RefusedAddress(f"not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not host or not port:
        raise RefusedAddress(f"not an http or https URL: {str(parsed)[:100]}")
    if parsed.user is not None:
        raise RefusedAddress("the URL carries a user name")
    try:
        if b"\0" in host.encode("idna"):
            raise UnicodeError("it holds a zero byte")
    except UnicodeError as error:  # which the resolver would raise
        raise RefusedAddress(f"not a host name: {error}") from None
    if not allow_private:
        check_host(host)
    return parsed


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
