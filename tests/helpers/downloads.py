"""Limits of a downloader for tests."""

from __future__ import annotations

from objrec.web.download import DownloadLimits

LIMITS = DownloadLimits(
    timeout=3.0,
    max_bytes=200_000,
    retries=2,
    max_wait=5,
    connections=16,
    connections_per_host=8,
    host_rate=None,
    robots=True,
    allow_private_addresses=True,
)
