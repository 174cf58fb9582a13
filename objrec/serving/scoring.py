"""POST /score, the route that must be fast: from an ASGI scope to the answer, with nothing in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.datastructures import QueryParams

from objrec.serving import handler
from objrec.serving.handler import Answer, RequestError, Upload
from objrec.serving.keys import check_key
from objrec.serving.wire import BODY, PROBLEMS, Asked, Score, Wishes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from objrec.serving.app import State
    from objrec.serving.live import Loaded

MAX_URL_BODY = 16384  # of a JSON object that holds an address
NO_WISHES = Wishes()


def add_score_route(app: FastAPI, state: State) -> None:
    """Add POST /score: documented as FastAPI documents a route, and answered before it comes to FastAPI.

    Its routing, parameters, exit stacks, request and response objects take more time than all the rest of HTTP, and
    while pictures are worked on, every microsecond of it is waited for.
    """

    # read for its types, and so that other methods are refused; Shortcut answers before it would be called
    @app.post("/score", response_model=Score, responses=PROBLEMS, openapi_extra=BODY, summary="Classify a picture")
    async def score(wishes: Asked) -> None:
        """Send the picture as it is, as base64 in JSON, or as the file of a form."""

    app.add_middleware(Shortcut, state=state)


class Shortcut:
    """ASGI middleware that answers POST /score itself."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/score" and scope["method"] == "POST":
            await score_request(self.state, scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def score_request(state: State, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a scoring request, whatever it holds."""
    try:
        answer = await _score(state, scope, receive)
    except RequestError as error:
        scope["state"]["fields"]["error"] = error.code
        answer = Answer.of_error(error, request_id=scope["state"]["request_id"])
    body = json.dumps(answer.body).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _score(state: State, scope: Scope, receive: Receive) -> Answer:
    settings = state.settings
    headers = dict(scope["headers"])
    check_key(settings.keys, headers)
    wishes = _wishes(scope["query_string"])
    loaded = state.serving()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "content_encoding", "send the picture as it is, without a content encoding")
    kind = headers[b"content-type"].decode("latin-1") if b"content-type" in headers else None
    body = await _read_body(receive, headers, max_bytes=settings.max_bytes, timeout=settings.timeout)
    upload = await _fetch(body, kind, state) if settings.allow_urls else None
    arrived = time.perf_counter()
    answer, seconds = await state.scheduler.run(lambda: _work(state, loaded, upload or body, kind, wishes, arrived))
    label, probability = answer.body["label"] or answer.body["reason"], answer.body["probability"]
    state.metrics.observe_prediction(label, probability)
    scope["state"]["fields"].update(
        bytes=len(body),
        label=label,
        probability=round(probability, 4),
        model=loaded.version[:12],
        work_ms=round(1000 * seconds, 2),
    )
    return answer


def _work(
    state: State, loaded: Loaded, given: bytes | Upload, kind: str | None, wishes: Wishes, arrived: float
) -> tuple[Answer, float]:
    """In a thread of the scheduler: return the answer, and the seconds that it took."""
    began = time.perf_counter()
    settings, predictor = state.settings, loaded.predictor
    upload = given if isinstance(given, Upload) else handler.read(given, kind, max_bytes=settings.max_bytes)
    pixels = handler.decode(upload, predictor)
    decoded = time.perf_counter()
    logits = predictor.logits(pixels[None])
    done = time.perf_counter()
    answer = handler.answer(
        logits,
        predictor,
        top_k=wishes.top_k or upload.top_k or settings.top_k,
        unknown=wishes.unknown or upload.unknown,
    )
    state.metrics.observe_stages(wait=began - arrived, decode=decoded - began, model=done - decoded)
    return answer, done - began


def _wishes(query: bytes) -> Wishes:
    if not query:
        return NO_WISHES
    try:
        return Wishes.model_validate(dict(QueryParams(query)))
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise RequestError(422, "invalid", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


async def _read_body(receive: Receive, headers: Mapping[bytes, bytes], *, max_bytes: int, timeout: float) -> bytes:
    limit = max_bytes * 4 // 3 + 65536  # base64 and a form's frame around the picture
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise handler.too_large(max_bytes)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(400, "cut_off", "the client left before its request was complete")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise handler.too_large(max_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks) if len(chunks) > 1 else chunk
    except TimeoutError:
        raise RequestError(408, "slow", f"the request did not arrive within {timeout:g} s") from None


async def _fetch(body: bytes, kind: str | None, state: State) -> Upload | None:
    """Return the picture behind the address that a small JSON body gives, or None where the body is the picture."""
    if len(body) > MAX_URL_BODY or not body.lstrip().startswith(b"{"):
        return None
    upload = handler.read(body, kind)
    if upload.url is None:
        return None
    from objrec.serving.fetch import fetch

    return replace(upload, data=await fetch(upload.url, state.settings), url=None)
