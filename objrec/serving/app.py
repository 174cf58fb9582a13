"""The HTTP application: routes and their types."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.resources
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

import objrec
from objrec.config.errors import UserError
from objrec.serving import handler, service
from objrec.serving.handler import Answer, RequestError, Upload
from objrec.serving.live import LiveModels, Loaded
from objrec.serving.metrics import Metrics
from objrec.serving.middleware import Observed
from objrec.serving.runtimes import cores
from objrec.serving.scheduler import Scheduler
from objrec.serving.settings import Settings

logger = logging.getLogger("objrec.serving")
MAX_URL_BODY = 16384  # of a JSON object that holds an address
FOLLOW_SECONDS = 1.0  # how often the alias is looked at; commands also say at once when they moved it
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Prediction(BaseModel):
    label: str
    probability: float


class Score(BaseModel):
    """The best label, and the best few with their probabilities.

    With ``unknown=true`` a picture of none of the classes has the label null and the reason ``unknown``.
    """

    model_config = ConfigDict(protected_namespaces=())

    label: str | None
    probability: float
    predictions: list[Prediction]
    model_version: str
    reason: str | None = None


class Problem(BaseModel):
    """Why there is no answer: ``error`` in a word, ``reason`` for people."""

    error: str
    reason: str
    request_id: str | None = None


class Version(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_version: str | None
    accuracy: float | None
    accuracy_drop: float | None
    class_names: list[str]
    input_size: int | None
    runtime: str | None
    precision: str | None
    problem: str | None
    objrec: str
    instance: str
    key_required: bool


class State:
    """What the routes share: settings, models, threads, metrics."""

    def __init__(self, settings: Settings, *, instance: str = "", token: str = "") -> None:
        self.settings, self.instance, self.token = settings, instance, token
        self.draining = False
        self.metrics = Metrics(lambda: self.scheduler.pending)
        self.models = LiveModels(settings, self.metrics)
        # one more than cores: while a thread waits for Python's lock, another's picture keeps its core busy
        workers = settings.workers or (settings.max_batch if self.models.may_batch else cores() + 1)
        self.scheduler = Scheduler(workers=workers, waiting=settings.queue, timeout=settings.timeout)

    def is_lost(self) -> bool:
        """Whether this is a background service whose registry is gone, or names another."""
        if not self.instance:
            return False
        named = service.read_state(Path(self.settings.registry_dir))
        return named is None or named.instance != self.instance

    def serving(self) -> Loaded:
        """Return the model that serves. Raises RequestError 503."""
        if self.models.current is None:
            raise RequestError(503, "not_ready", self.models.problem or service.LOADING, retry_after=1)
        return self.models.current


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {
                            "type": "string",
                            "contentEncoding": "base64",
                            "description": "the picture, as base64",
                        },
                        "top_k": {"type": "integer", "minimum": 1, "maximum": handler.MAX_TOP_K},
                        "unknown": {"type": "boolean"},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "not HTTP as it should be",
        401: "a key is required",
        408: "the body did not arrive in time",
        413: "too many bytes or pixels",
        415: "not a picture, or not in a format that is read",
        422: "damaged or incomplete",
        429: "the queue is full",
        503: "not ready, or out of time",
    }.items()
}
TopK = Annotated[int | None, Query(ge=1, le=handler.MAX_TOP_K, description="how many labels to answer with")]
Unknown = Annotated[bool, Query(description="whether to answer with no label for a picture of none of the classes")]


def create_app(state: State) -> FastAPI:
    """Build the application around ``state``."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower = asyncio.create_task(_follow(state))
        yield
        follower.cancel()
        state.scheduler.close()

    app = FastAPI(
        title="objrec",
        version=objrec.__version__,
        description="What is on this picture? Send it to /score.",
        lifespan=lifespan,
        redoc_url=None,
    )
    _add_error_handlers(app)
    if state.settings.cors:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware, allow_origins=state.settings.cors, allow_methods=["POST"], allow_headers=["*"]
        )
    app.add_middleware(Observed, state=state)
    html = importlib.resources.files("objrec.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/score", response_model=Score, responses=PROBLEMS, openapi_extra=BODY, summary="Classify a picture")
    async def score(request: Request, top_k: TopK = None, unknown: Unknown = False) -> Response:
        return _response(await _score(state, request, top_k, unknown))

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Is a model loaded and warm?", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        if state.draining:
            raise RequestError(503, "draining", "this endpoint is shutting down", retry_after=1)
        return {"status": "ready", "model_version": state.serving().version}

    @app.get("/version", summary="What is served?")
    async def version() -> Version:
        return _version(state)

    @app.get("/metrics", summary="For Prometheus", response_class=Response, responses={401: PROBLEMS[401]})
    async def metrics(request: Request) -> Response:
        _check_key(state, request)
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})

    @app.post("/control/{action}", include_in_schema=False)
    async def control(request: Request, action: str, sha256: str = "") -> Response:
        return await _control(state, request, action, sha256)

    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Give every failure the same shape."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        request.state.fields["error"] = error.code
        return _response(Answer.of_error(error, request_id=request.state.request_id))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"
        return await refused(request, RequestError(422, "invalid", reason))

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        answer = Answer.of_error(
            RequestError(error.status_code, "http", str(error.detail)), request_id=request.state.request_id
        )
        return _response(Answer(answer.status, answer.body, dict(error.headers or {})))


async def _follow(state: State) -> None:
    """Keep up with the alias, and leave when no command could find this service any more."""
    lost = 0
    while True:
        if state.models.current is None or state.models.changed():
            with contextlib.suppress(UserError):
                await asyncio.to_thread(state.models.follow)
        await asyncio.sleep(FOLLOW_SECONDS)
        lost = lost + 1 if state.is_lost() else 0
        if lost == 3:  # once could be a file that is being replaced
            logger.error("leaving: the state file no longer names this service")
            os.kill(os.getpid(), signal.SIGTERM)


async def _score(state: State, request: Request, top_k: int | None, unknown: bool) -> Answer:
    _check_key(state, request)
    settings, loaded, metrics = state.settings, state.serving(), state.metrics
    kind = request.headers.get("content-type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "content_encoding", "send the picture as it is, without a content encoding")
    body = await _read_body(request, settings)
    fetched = await _fetch(body, kind, settings) if settings.allow_urls else None
    arrived = time.perf_counter()

    def work() -> tuple[Answer, float]:
        began = time.perf_counter()
        upload = fetched or handler.read(body, kind, max_bytes=settings.max_bytes)
        pixels = handler.decode(upload, loaded.predictor)
        decoded = time.perf_counter()
        logits = loaded.predictor.logits(pixels[None])
        done = time.perf_counter()
        answer = handler.answer(
            logits,
            loaded.predictor,
            top_k=top_k or upload.top_k or settings.top_k,
            unknown=unknown or upload.unknown,
        )
        for stage, seconds in (("wait", began - arrived), ("decode", decoded - began), ("model", done - decoded)):
            metrics.stages.labels(stage).observe(seconds)
        return answer, done - began

    answer, seconds = await state.scheduler.run(work)
    label, probability = answer.body["label"] or answer.body["reason"], answer.body["probability"]
    metrics.predictions.labels(label).observe(probability)
    request.state.fields.update(
        bytes=len(body),
        label=label,
        probability=round(probability, 4),
        model=loaded.version[:12],
        work_ms=round(1000 * seconds, 2),
    )
    return answer


async def _fetch(body: bytes, kind: str | None, settings: Settings) -> Upload | None:
    """Return the picture behind the address that a small JSON body gives, or None where the body is the picture."""
    if len(body) > MAX_URL_BODY or not body.lstrip().startswith(b"{"):
        return None
    upload = handler.read(body, kind)
    if upload.url is None:
        return None
    from objrec.serving.fetch import fetch

    return replace(upload, data=await fetch(upload.url, settings), url=None)


async def _read_body(request: Request, settings: Settings) -> bytes:
    limit = settings.max_bytes * 4 // 3 + 65536  # base64 and a form's frame around the picture
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise handler.too_large(settings.max_bytes)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise handler.too_large(settings.max_bytes)
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(408, "slow", f"the request did not arrive within {settings.timeout:g} s") from None
    return b"".join(chunks)


def _check_key(state: State, request: Request) -> None:
    key = state.settings.key
    if key is None:
        return
    given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
        raise RequestError(401, "key", "this endpoint needs its key, in the header X-API-Key")


def _version(state: State) -> Version:
    loaded, common = state.models.current, {
        "problem": state.models.problem,
        "objrec": objrec.__version__,
        "instance": state.instance,
        "key_required": state.settings.key is not None,
    }  # fmt: skip
    if loaded is None:
        empty = dict.fromkeys(("model_version", "accuracy", "accuracy_drop", "input_size", "runtime", "precision"))
        return Version.model_validate({"class_names": [], **empty, **common})
    card, session = loaded.predictor.card, loaded.predictor.session
    return Version.model_validate(
        {
            "model_version": loaded.version,
            "accuracy": loaded.record.accuracy,
            "accuracy_drop": loaded.accuracy_drop,
            "class_names": card.class_names,
            "input_size": card.input_size,
            "runtime": session.runtime,
            "precision": session.precision,
            **common,
        }
    )


async def _control(state: State, request: Request, action: str, sha256: str) -> Response:
    """For the commands of this machine, which know the token from the state file."""
    given = request.headers.get("x-service-token", "")
    if not state.token or not hmac.compare_digest(given.encode(), state.token.encode()):
        raise RequestError(401, "token", "not for you")
    try:
        if action == "prepare":
            loaded = await asyncio.to_thread(state.models.prepare, sha256)
        elif action == "follow":
            loaded = await asyncio.to_thread(state.models.follow)
        else:
            raise RequestError(404, "action", f"no action {action}")
    except UserError as error:
        raise RequestError(409, "not_loaded", str(error)) from None
    return JSONResponse({"model_version": loaded.version})


def _response(answer: Answer) -> Response:
    return Response(json.dumps(answer.body), answer.status, dict(answer.headers), "application/json")
