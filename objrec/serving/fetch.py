"""Images that clients name by address, fetched behind the same guards as those of ingest."""

from __future__ import annotations

from objrec.serving.request import RequestError, too_large
from objrec.serving.settings import ServiceSettings
from objrec.web.download import Downloader, DownloadLimits
from objrec.web.failures import FetchError

CONNECTIONS = 8
CONNECTIONS_PER_HOST = 4
NOT_ALLOWED = "the URL does not lead to a public http or https address"
UNREACHABLE = "its server cannot be reached"
UNSAID = {  # by status: a client is not to learn from errors which names and addresses exist behind this endpoint
    "refused_address": NOT_ALLOWED,
    "dns": NOT_ALLOWED,
    "connection": UNREACHABLE,
    "tls": UNREACHABLE,
    "protocol": "its server's answer is not valid HTTP",
    "redirect": "its redirects lead nowhere",
}


async def fetch(url: str, settings: ServiceSettings) -> bytes:
    """Return what is behind ``url``: http(s) only, to public addresses, bounded in bytes and time, tried once.

    Raises:
        RequestError: 413 when it is too large, 422 with the reason when it cannot be had.
    """
    limits = DownloadLimits(
        timeout=settings.timeout,
        max_bytes=settings.max_bytes,
        retries=0,
        max_wait=0.0,
        connections=CONNECTIONS,
        connections_per_host=CONNECTIONS_PER_HOST,
        host_rate=None,
        robots=False,  # a person asks for one image: this is no crawl
        allow_private_addresses=settings.allow_private_addresses,
    )
    try:
        async with Downloader(limits, contact=settings.contact, host_limits={}) as downloader:
            return await downloader.fetch(url)
    except FetchError as error:
        if error.status == "too_large":
            raise too_large(settings.max_bytes) from None
        reason = UNSAID.get(error.status, error.reason)
        raise RequestError(422, "not_fetched", f"the image could not be fetched: {reason}") from None
