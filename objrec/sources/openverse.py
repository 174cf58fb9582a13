"""Openverse: openly licensed images from Flickr, museums and others, with a licence for each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from objrec.sources.base import Api, ApiReply, Candidate, SourceStopped, items, number_of, text_of
from objrec.sources.licenses import CODES, url_of
from objrec.sources.query import Queries, base_of

PATH: Final = "/v1/images/"
ENDPOINT: Final = "https://api.openverse.org"
ANONYMOUS_PAGE: Final = 20  # a larger page needs a token
TOKEN_PAGE: Final = 80
ANONYMOUS_INTERVAL: Final = 3.0  # seconds: 20 calls a minute
TOKEN_INTERVAL: Final = 0.6


class OpenverseSource:
    """Search results of the Openverse API, about 240 for a query at most.

    ``OPENVERSE_CLIENT_ID`` and ``OPENVERSE_CLIENT_SECRET`` in the environment raise the limits from 200 calls a day to
    10,000 (https://api.openverse.org/v1/#tag/auth).

    Args:
        licenses: codes of ``objrec.sources.licenses``; None for all.
        query: template with ``{name}``.
        queries: other words for some classes.
        filters: further parameters of the service's image search, such as ``size`` or ``extension``.
        interval: seconds between calls; None for the service's limit.
    """

    name = "openverse"

    def __init__(
        self,
        *,
        api: Api,
        endpoint: str | None,
        licenses: Sequence[str] | None,
        query: str,
        queries: Mapping[str, str] | None,
        filters: Mapping[str, str] | None,
        interval: float | None,
    ) -> None:
        self._api, self._licenses, self._filters = api, licenses, dict(filters or {})
        self._queries = Queries(query, queries)
        self._base = base_of(endpoint or ENDPOINT, PATH)
        self._client = os.environ.get("OPENVERSE_CLIENT_ID"), os.environ.get("OPENVERSE_CLIENT_SECRET")
        has_token = all(self._client)
        self._interval = interval if interval is not None else TOKEN_INTERVAL if has_token else ANONYMOUS_INTERVAL
        self._page_size = TOKEN_PAGE if has_token else ANONYMOUS_PAGE
        self._headers: dict[str, str] | None = None

    def class_names(self) -> None:
        return None

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        query = self._queries.for_class(class_name)[:200]
        page, last = 1, 1
        seen: set[str] = set()
        while page <= last:
            body = self._page(query, page)
            last = number_of(body, "page_count") or 0
            fresh = [r for r in items(body, "results") if text_of(r, "url") not in seen]
            if not fresh:
                return  # an empty page, or one repeated
            for result in fresh:
                if url := text_of(result, "url"):
                    seen.add(url)
                    yield _candidate(result, url, class_name, query)
            page += 1

    def _page(self, query: str, page: int) -> dict[str, Any]:
        parameters: dict[str, str | int] = {"q": query, "page": page, "page_size": self._page_size, "mature": "false"}
        if self._licenses:
            parameters["license"] = ",".join(self._licenses)
        parameters |= self._filters
        reply = self._api.get(self._base + PATH, parameters, interval=self._interval, headers=self._authorization())
        if reply.status == 200 and isinstance(reply.body, dict):
            return reply.body
        raise SourceStopped(_explanation(reply))

    def _authorization(self) -> dict[str, str]:
        """The header of a token asked for once, or nothing where there is no client."""
        if self._headers is None:
            self._headers = {}
            identifier, secret = self._client
            if identifier and secret:
                form = {"client_id": identifier, "client_secret": secret, "grant_type": "client_credentials"}
                reply = self._api.post(f"{self._base}/v1/auth_tokens/token/", form, interval=0)
                token = reply.body.get("access_token") if isinstance(reply.body, dict) else None
                if not token:
                    raise SourceStopped(f"OPENVERSE_CLIENT_ID was not accepted (HTTP {reply.status})")
                self._headers = {"Authorization": f"Bearer {token}"}
        return self._headers


def _candidate(result: Mapping[str, Any], url: str, class_name: str, query: str) -> Candidate:
    code = text_of(result, "license")
    return Candidate(
        class_name=class_name,
        source=OpenverseSource.name,
        url=url,
        query=query,
        landing_page=text_of(result, "foreign_landing_url"),
        title=text_of(result, "title"),
        license=code,
        license_url=text_of(result, "license_url")
        or (url_of(code, text_of(result, "license_version")) if code in CODES else None),
        creator=text_of(result, "creator"),
        attribution=text_of(result, "attribution"),
        width=number_of(result, "width"),
        height=number_of(result, "height"),
    )


def _explanation(reply: ApiReply) -> str:
    detail = reply.body.get("detail") if isinstance(reply.body, dict) else None
    told = f" ({str(detail)[:200]})" if detail else ""
    if reply.status == 403:
        return f"HTTP 403{told}: its network refuses some data centres' addresses; try from another network"
    if reply.status == 429:
        left = {k: v for k, v in reply.headers.items() if k.startswith("x-ratelimit-available-")}
        if any(k.endswith("_sustained") and v.strip() == "0" for k, v in left.items()):
            reason = "the quota of a day is used up"
        else:
            reason = reply.patience
        return (
            f"HTTP 429{told}: {reason}. Without a key it allows 20 calls a minute and 200 calls a day. Run again later "
            "with ingest.refresh=true, or set OPENVERSE_CLIENT_ID and OPENVERSE_CLIENT_SECRET"
        )
    if reply.status == 503:
        return f"HTTP 503{told}: {reply.patience}"
    if reply.status == 401:
        return f"HTTP 401{told}: the token, or a page larger than it allows, was not accepted"
    if reply.status == 200:
        return "its answer is no JSON object"
    return f"HTTP {reply.status}{told}"
