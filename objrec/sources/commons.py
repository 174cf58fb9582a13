"""Wikimedia Commons: freely licensed files, found by the MediaWiki search."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from objrec.sources.base import Api, ApiReply, Candidate, SourceStopped, items, number_of, text_of
from objrec.sources.licenses import code_of, url_of
from objrec.sources.query import Queries, base_of

PATH: Final = "/w/api.php"
ENDPOINT: Final = "https://commons.wikimedia.org"
HOST_LIMITS: Final = {"upload.wikimedia.org": 2}  # connections at once that its policy allows
WIDTHS: Final = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)  # any other is refused with 429
METADATA: Final = "LicenseShortName|License|LicenseUrl|UsageTerms|Artist|Credit|AttributionRequired|Restrictions"
BUSY: Final = ("maxlag", "ratelimited")  # errors that pass by waiting
MAX_METADATA: Final = 20_000  # characters of a value
TAG: Final = re.compile(r"<[^<>]*>")  # without '<' inside: '<<<<...' would take quadratic time


class CommonsSource:
    """Bitmaps found by a text search; what is downloaded is a thumbnail, as the service asks of bulk users.

    Args:
        query: template with ``{name}``, in the syntax of its search (``haswbstatement:P180=Q146`` finds depicted cats).
        queries: other words for some classes.
        width: of the thumbnail in pixels, one of WIDTHS.
        interval: seconds between calls.
    """

    name = "commons"

    def __init__(
        self,
        *,
        api: Api,
        endpoint: str | None,
        query: str,
        queries: Mapping[str, str] | None,
        width: int,
        interval: float,
    ) -> None:
        from objrec.config.errors import UserError

        if width not in WIDTHS:
            raise UserError(
                f"source.width={width}: the service makes thumbnails of {', '.join(map(str, WIDTHS))} px only"
            )
        self._api, self._width, self._interval = api, width, interval
        self._queries = Queries(query, queries)
        self._base = base_of(endpoint or ENDPOINT, PATH)

    def class_names(self) -> None:
        return None

    def candidates(self, class_name: str) -> Iterator[Candidate]:
        query = self._queries.for_class(class_name)
        parameters: dict[str, str | int] = {
            "action": "query", "format": "json", "formatversion": 2, "generator": "search", "gsrnamespace": 6,
            "gsrlimit": 50, "gsrsearch": f"{query} filetype:bitmap", "prop": "imageinfo",
            "iiprop": "url|size|mime|mediatype|sha1|user|extmetadata", "iiurlwidth": self._width,
            "iiextmetadatafilter": METADATA, "maxlag": 5,
        }  # fmt: skip
        more: dict[str, str | int] = {}
        visited: list[dict[str, str | int]] = []
        while more not in visited:
            visited.append(more)
            body = self._page(parameters | more)
            pages = items(body.get("query"), "pages")
            for page in sorted(pages, key=lambda p: number_of(p, "index") or 0):
                yield from _candidates(page, class_name, query, self._width)
            more = body.get("continue") or {}
            if not more or not isinstance(more, dict):
                return

    def _page(self, parameters: Mapping[str, str | int]) -> dict[str, Any]:
        """One page of results. An error may come with status 200."""
        reply = self._api.get(
            self._base + PATH, parameters, interval=self._interval, busy=lambda b: _error(b)[0] in BUSY
        )
        code, info = _error(reply.body)
        if reply.status == 200 and isinstance(reply.body, dict) and reply.body and "error" not in reply.body:
            return reply.body
        raise SourceStopped(_explanation(reply, code, info or f"HTTP {reply.status}"))


def _error(body: Any) -> tuple[str | None, str]:
    """Code and text of an error."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None, ""
    return str(error.get("code")), str(error.get("info") or error.get("code"))


def _candidates(page: Mapping[str, Any], class_name: str, query: str, width: int) -> Iterator[Candidate]:
    info = next(iter(items(page, "imageinfo")), {})
    original_width, original_height = number_of(info, "width") or 0, number_of(info, "height") or 0
    thumbnail = text_of(info, "thumburl")
    url = thumbnail if original_width > width else text_of(info, "url") or thumbnail
    if url is None or info.get("mediatype") not in (None, "BITMAP"):
        return
    data = info.get("extmetadata")
    name = _text(data, "LicenseShortName") or _text(data, "UsageTerms")
    code = code_of(_text(data, "License")) or code_of(name) or code_of(_text(data, "LicenseUrl"))
    version = re.search(r"\d\.\d", name or "")
    creator = _text(data, "Artist") or text_of(info, "user")
    title = str(page.get("title") or "").removeprefix("File:") or None
    yield Candidate(
        class_name=class_name,
        source=CommonsSource.name,
        url=url,
        query=query,
        landing_page=text_of(info, "descriptionurl"),
        title=title,
        license=code or name,
        license_url=_text(data, "LicenseUrl") or url_of(code, version.group() if version else None),
        creator=creator,
        attribution=_text(data, "Credit"),
        width=number_of(info, "thumbwidth") if original_width > width else original_width or None,
        height=number_of(info, "thumbheight") if original_width > width else original_height or None,
    )


def _text(data: Any, key: str) -> str | None:
    """A metadata value without its HTML."""
    value = text_of(data.get(key), "value") if isinstance(data, dict) else None
    if value is None:
        return None
    plain = TAG.sub(" ", value[:MAX_METADATA])
    with contextlib.suppress(ValueError):  # a character reference of thousands of digits
        plain = html.unescape(plain)
    return " ".join(plain.split()) or None


def _explanation(reply: ApiReply, code: str | None, info: str) -> str:
    if code == "maxlag":
        return f"its servers lag behind ({info[:200]}): {reply.patience}; run again later with ingest.refresh=true"
    if code == "ratelimited" or reply.status == 429:
        return f"it asks for fewer calls ({info[:200]}): {reply.patience}; run again later with ingest.refresh=true"
    if reply.status == 503:
        return f"{info[:200]}: {reply.patience}; run again later with ingest.refresh=true"
    if reply.status == 403:
        return "HTTP 403: it refuses clients without a valid contact: is ingest.contact an address of yours?"
    return f"error {code or ''} {info[:200]}".replace("  ", " ")
