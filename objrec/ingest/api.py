"""What web sources call: a service's JSON, remembered across runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any
from urllib.parse import urlencode

from objrec.ingest.store import WebStore
from objrec.sources.base import ApiReply, SourceStopped, load_json
from objrec.web.download import Downloader, Reply
from objrec.web.failures import FetchError, retry_after


class StoredApi:
    """An ``objrec.sources.base.Api`` for sources that run in threads, over a downloader that runs in an event loop.

    Args:
        refresh: ask again even where the store has the answer.
    """

    def __init__(
        self, downloader: Downloader, store: WebStore, loop: asyncio.AbstractEventLoop, *, refresh: bool
    ) -> None:
        self._downloader, self._store, self._loop, self._refresh = downloader, store, loop, refresh
        self._calls: set[Future[Reply]] = set()
        self._closed = False

    def get(
        self,
        url: str,
        params: Mapping[str, str | int],
        *,
        interval: float,
        headers: Mapping[str, str] | None = None,
        busy: Callable[[Any], bool] = lambda body: False,
    ) -> ApiReply:
        address = f"{url}?{urlencode(params)}"
        if not self._refresh and (known := self._store.page(address)) is not None:
            return ApiReply(status=200, headers={}, body=known)

        def is_busy(reply: Reply) -> bool:
            return busy(_parsed(reply).body)

        call = self._downloader.request("GET", address, interval=interval, headers=headers, busy=is_busy)
        reply = self._run(call)
        if reply.status == 200 and isinstance(reply.body, dict) and "error" not in reply.body:
            self._store.keep_page(address, reply.body)
        return reply

    def post(self, url: str, form: Mapping[str, str], *, interval: float) -> ApiReply:
        return self._run(self._downloader.request("POST", url, interval=interval, data=dict(form)))

    def close(self) -> None:
        """Let no thread wait for an answer any more."""
        self._closed = True
        for call in list(self._calls):
            call.cancel()

    def _run(self, call: Coroutine[Any, Any, Reply]) -> ApiReply:
        if self._closed:
            call.close()
            raise SourceStopped("the run has ended")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        self._calls.add(future)
        try:
            return _parsed(future.result())
        except FetchError as error:
            raise SourceStopped(f"cannot be reached: {error.reason}") from error
        except CancelledError:
            raise SourceStopped("the run has ended") from None
        finally:
            self._calls.discard(future)


def _parsed(reply: Reply) -> ApiReply:
    """The body as JSON, or None where it is none."""
    try:
        body = load_json(reply.body)
    except ValueError:
        body = None
    asked = retry_after(reply.headers.get("retry-after"))
    return ApiReply(status=reply.status, headers=reply.headers, body=body, waited=reply.waited, asked=asked)
