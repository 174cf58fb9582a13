"""POST /score, the route that must be fast: from an ASGI scope to the answer, with nothing in between."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.datastructures import QueryParams

from objrec.serving import request as handler
from objrec.serving.keys import check_key
from objrec.serving.memory import FREE, largest_body
from objrec.serving.request import Answer, RequestError, Upload, Uploads
from objrec.serving.schemas import BODY, PROBLEMS, Score, ScoreQuery, ScoreQueryParams, Scores

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from objrec.serving.model_manager import Loaded
    from objrec.serving.state import State

MAX_URL_BODY = 16384  # of a JSON object that holds an address
HEAVY_PIXELS = 6_000_000  # above it an image takes a tenth of a second or more
WAIT_PART = 0.5  # of the time for a body to arrive may go by until there is memory for it
NO_QUERY = ScoreQuery()


def add_score_route(app: FastAPI, state: State) -> None:
    """Add POST /score: documented as FastAPI documents a route, and answered before it comes to FastAPI.

    Its routing, parameters, exit stacks, request and response objects take more time than all the rest of HTTP, and
    while images are worked on, every microsecond of it is waited for.
    """

    # read for its types, and so that other methods are refused; Shortcut answers before it would be called
    @app.post(
        "/score", response_model=Score | Scores, responses=PROBLEMS, openapi_extra=BODY, summary="Classify an image"
    )
    async def score(query: ScoreQueryParams) -> None:
        """Send the image as it is, as base64 in JSON, or as the file of a form; the last two may hold several."""

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
    query = _query(scope["query_string"])
    loaded = state.serving()
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise RequestError(415, "content_encoding", "send the image as it is, without a content encoding")
    kind = headers[b"content-type"].decode("latin-1") if b"content-type" in headers else None
    async with contextlib.AsyncExitStack() as held:  # memory, until there is an answer
        body = await read_body(receive, headers, state, held)
        upload = await _fetch(body, kind, state, held) if settings.allow_urls else None
        request = ScoreRequest(state, loaded, upload or body, kind, query, scope["state"]["made_id"])
        del body, upload  # or they would be kept while the image that was read from them is worked on
        answer = await request.answer()
    scope["state"]["fields"].update(request.log_fields(answer))
    return answer


class _Heavy(Exception):
    """Raised where an image is so large that other threads should take it."""


class ScoreRequest:
    """One scoring request on its way through the threads.

    Args:
        given: its body, or the images in it.
        made_id: of the request, by which its answers can be named later.
    """

    def __init__(
        self, state: State, loaded: Loaded, given: bytes | Uploads, kind: str | None, query: ScoreQuery, made_id: str
    ) -> None:
        self.state, self.loaded, self.given, self.kind = state, loaded, given, kind
        self.query, self.made_id = query, made_id
        self.bytes = sum(len(u.data) for u in given.images) if isinstance(given, Uploads) else len(given)
        self.arrived, self.seconds = time.perf_counter(), 0.0
        self.deadline = time.monotonic() + state.settings.timeout

    async def answer(self) -> Answer:
        """Return the answer. Raises RequestError."""
        try:
            return await self.state.scheduler.run(self._work)
        except _Heavy:
            left = self.deadline - time.monotonic()
            return await self.state.heavy.run(functools.partial(self._work, heavy=True), timeout=left)

    def log_fields(self, answer: Answer) -> dict[str, Any]:
        first = answer.body["results"][0] if "results" in answer.body else answer.body
        fields = {"bytes": self.bytes, "model": self.loaded.version[:12], "work_ms": round(1000 * self.seconds, 2)}
        if "label" in first:
            fields |= {"label": first["label"] or first["reason"], "probability": round(first["probability"], 4)}
        return fields | ({"images": len(answer.body["results"])} if "results" in answer.body else {})

    def _work(self, *, heavy: bool = False) -> Answer:
        """In a thread of a scheduler."""
        began = time.perf_counter()
        if not isinstance(self.given, Uploads):
            with self.state.memory.reading(self.given, self.deadline):
                self.given = handler.read(self.given, self.kind, max_bytes=self.state.settings.max_bytes)
        if not heavy and any(map(self._is_heavy, self.given.images)):
            raise _Heavy
        self.state.metrics.observe_stages(wait=began - self.arrived)
        answer = handler.answer_all(self.given, self._answer, request_id=self.made_id)
        self.seconds += time.perf_counter() - began
        return answer

    def _is_heavy(self, upload: Upload) -> bool:
        try:
            return self.state.memory.cost(upload, self.loaded.predictor).pixels > HEAVY_PIXELS
        except RequestError:  # which is its answer
            return False

    def _answer(self, upload: Upload) -> Answer:
        began = time.perf_counter()
        memory, predictor, metrics = self.state.memory, self.loaded.predictor, self.state.metrics
        pixels = memory.pixels(upload, predictor, memory.cost(upload, predictor), self.deadline)
        decoded = time.perf_counter()
        logits = predictor.logits(pixels[None])
        done = time.perf_counter()
        answer = handler.answer(
            logits,
            predictor,
            top_k=self.query.top_k or upload.top_k or self.state.settings.top_k,
            unknown=self.query.unknown or upload.unknown,
        )
        metrics.observe_stages(decode=decoded - began, model=done - decoded)
        metrics.observe_prediction(answer.body["label"] or answer.body["reason"], answer.body["probability"])
        return answer


def _query(query: bytes) -> ScoreQuery:
    if not query:
        return NO_QUERY
    try:
        return ScoreQuery.model_validate(dict(QueryParams(query)))
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise RequestError(422, "invalid", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], state: State, held: contextlib.AsyncExitStack
) -> bytes:
    """Return the body, with memory held for it before it is read."""
    max_bytes, timeout = state.settings.max_bytes, state.settings.timeout
    limit = largest_body(max_bytes)
    declared = headers.get(b"content-length", b"")
    expected = int(declared) if declared.isdigit() else limit
    if declared.isdigit() and expected > limit:
        raise handler.too_large(max_bytes)
    body, is_held = io.BytesIO(), False  # which grows in place, and gives what it holds away without a copy
    try:
        async with asyncio.timeout(timeout):
            while True:
                if not is_held and (body.tell() > FREE or (declared and expected > FREE)):
                    await held.enter_async_context(state.memory.body(expected, timeout=WAIT_PART * timeout))
                    is_held = True
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestError(400, "cut_off", "the client left before its request was complete")
                chunk = message.get("body", b"")
                if body.tell() + len(chunk) > limit:
                    raise handler.too_large(max_bytes)
                is_last = not message.get("more_body", False)
                if is_last and not body.tell():
                    return bytes(chunk)
                body.write(chunk)
                if is_last:
                    whole: bytes = body.getvalue()
                    return whole
    except TimeoutError:
        raise RequestError(408, "slow", f"the request did not arrive within {timeout:g} s") from None


async def _fetch(body: bytes, kind: str | None, state: State, held: contextlib.AsyncExitStack) -> Uploads | None:
    """Return the image behind the address that a small JSON body gives, or None where the body is the image."""
    if len(body) > MAX_URL_BODY or not body.lstrip().startswith(b"{"):
        return None
    upload = handler.read(body, kind).images[0]
    if upload.url is None:
        return None
    from objrec.serving.fetch import fetch

    await held.enter_async_context(state.memory.body(state.settings.max_bytes, timeout=state.settings.timeout))
    return Uploads([replace(upload, data=await fetch(upload.url, state.settings), url=None)])
