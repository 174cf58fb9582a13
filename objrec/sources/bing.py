"""The protocol of Bing Image Search v7, for compatible endpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from objrec.config.errors import UserError
from objrec.sources.base import Api, ApiReply, Candidate, SourceStopped, items, number_of, text_of
from objrec.sources.query import Queries, base_of

PATH: Final = "/v7.0/images/search"
KEYS: Final = ("COGNITIVE_SERVICES_API_KEY", "BING_SEARCH_V7_SUBSCRIPTION_KEY")
NOTICE: Final = (
    "source=bing: Microsoft retired Bing Image Search v7 on 2025-08-11, and its terms forbade storing results and "
    "using them for machine learning. This source speaks its protocol to an endpoint that you name; the results carry "
    "no licence: whether you may use them is for you to settle"
)


class BingSource:
    """Results of a v7-compatible image search.

    The key is read from ``COGNITIVE_SERVICES_API_KEY`` or ``BING_SEARCH_V7_SUBSCRIPTION_KEY``, the endpoint from
    ``source.endpoint`` or ``BING_SEARCH_V7_ENDPOINT``; neither has a default.

    Args:
        query: template with ``{name}``.
        queries: other words for some classes.
        market: such as ``en-US``.
        page_size: at most 150.
        interval: seconds between calls.
    """

    name = "bing"

    def __init__(
        self,
        *,
        api: Api,
        endpoint: str | None,
        query: str,
        queries: Mapping[str, str] | None,
        market: str,
        page_size: int,
        interval: float,
    ) -> None:
        base = endpoint or os.environ.get("BING_SEARCH_V7_ENDPOINT")
        key = next((os.environ[k] for k in KEYS if os.environ.get(k)), None)
        problems = []
        if not base:
            problems.append("source.endpoint: source=bing needs the URL of a compatible service. " + NOTICE)
        if not key:
            problems.append(f"source=bing needs a key in the environment: {' or '.join(KEYS)}")
        if not 1 <= page_size <= 150:
            problems.append(f"source.page_size={page_size}: should be from 1 to 150")
        if problems or not base or not key:
            raise UserError(problems)
        print(NOTICE, file=sys.stderr)
        self._api, self._market, self._page_size, self._interval = api, market, page_size, interval
        self._queries = Queries(query, queries)
        self._base, self._headers = base_of(base, PATH), {"Ocp-Apim-Subscription-Key": key}

    def class_names(self) -> None:
        return None

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        query = self._queries.for_class(class_name)
        offset, estimate = 0, 1
        while offset < estimate:
            body = self._page(query, offset)
            results = items(body, "value")
            for result in results:
                if url := text_of(result, "contentUrl"):
                    yield _candidate(result, url, class_name, query)
            estimate = number_of(body, "totalEstimatedMatches") or 0
            further = number_of(body, "nextOffset") or 0
            if not results or further <= offset:
                return  # the end; an offset that stands still would repeat the page endlessly
            offset = further

    def _page(self, query: str, offset: int) -> dict[str, Any]:
        parameters: dict[str, str | int] = {
            "q": query, "count": self._page_size, "offset": offset, "mkt": self._market, "safeSearch": "Strict",
            "imageType": "Photo",
        }  # fmt: skip
        reply = self._api.get(self._base + PATH, parameters, interval=self._interval, headers=self._headers)
        if reply.status == 200 and isinstance(reply.body, dict) and reply.body.get("_type") != "ErrorResponse":
            return reply.body
        raise SourceStopped(_explanation(reply))


def _candidate(result: Mapping[str, Any], url: str, class_name: str, query: str) -> Candidate:
    return Candidate(
        class_name=class_name,
        source=BingSource.name,
        url=url,
        query=query,
        landing_page=text_of(result, "hostPageUrl"),
        title=text_of(result, "name"),
        width=number_of(result, "width"),
        height=number_of(result, "height"),
    )


def _explanation(reply: ApiReply) -> str:
    errors = reply.body.get("errors") if isinstance(reply.body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    told = f" ({str(first.get('message'))[:200]})" if first.get("message") else ""
    meaning = {
        400: "the service did not understand the query",
        401: "the key was not accepted",
        403: "the key may not do this, or its monthly quota is used up",
        410: "the endpoint wants https",
        429: f"too many calls: {reply.patience}",
        503: f"the service is {reply.patience}",
    }.get(reply.status, "the service failed" if reply.status >= 500 else "an answer out of protocol")
    return f"HTTP {reply.status}{told}: {meaning}"
