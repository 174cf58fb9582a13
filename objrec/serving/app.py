"""The HTTP application: routes and their types."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib.resources
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict

import objrec
from objrec.config.errors import UserError
from objrec.serving import handler
from objrec.serving.handler import Answer, RequestError
from objrec.serving.live import LiveModels, Loaded, cores
from objrec.serving.scheduler import Scheduler
from objrec.serving.settings import Settings

FOLLOW_SECONDS = 1.0  # how often the alias is looked at; commands also say at once when they moved it


class Prediction(BaseModel):
    label: str
    probability: float


class Score(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    label: str
    probability: float
    predictions: list[Prediction]
    model_version: str


class Problem(BaseModel):
    error: str
    reason: str
    request_id: str | None = None


class Version(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_version: str | None
    accuracy: float | None
    class_names: list[str]
    input_size: int | None
    runtime: str | None
    precision: str | None
    objrec: str
    instance: str


class State:
    """What the routes share: settings, models, threads."""

    def __init__(self, settings: Settings, *, instance: str = "", token: str = "") -> None:
        self.settings = settings
        self.instance = instance
        self.token = token
        self.models = LiveModels(settings)
        workers = settings.workers or cores()
        self.scheduler = Scheduler(workers=workers, queue=settings.queue, timeout=settings.timeout)
        self.draining = False

    def ready(self) -> Loaded:
        """Return the model that serves. Raises RequestError 503."""
        if self.draining:
            raise RequestError(503, "draining", "this endpoint is shutting down", retry_after=1)
        if self.models.current is None:
            raise RequestError(503, "not_ready", self.models.problem or "the model is being loaded", retry_after=1)
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
                        "data": {"type": "string", "contentEncoding": "base64"},
                        "top_k": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "top_k": {"type": "integer"}},
                }
            },
        },
    }
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "a key is required",
        408: "the body did not arrive in time",
        413: "too many bytes or pixels",
        415: "not a picture, or not in a format that is read",
        422: "damaged or incomplete",
        429: "the queue is full",
        503: "not ready, shutting down, or out of time",
    }.items()
}


def create_app(state: State) -> FastAPI:
    """Build the application around ``state``."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower = asyncio.create_task(_follow(state.models))
        yield
        follower.cancel()
        state.scheduler.close()

    app = FastAPI(title="objrec", version=objrec.__version__, lifespan=lifespan)

    @app.exception_handler(RequestError)
    async def problem(_: Request, error: RequestError) -> Response:
        return _response(Answer.of_error(error))

    @app.post("/score", response_model=Score, responses=PROBLEMS, openapi_extra=BODY, summary="Classify a picture")
    async def score(request: Request, top_k: Annotated[int | None, Query(ge=1, le=1_000_000)] = None) -> Response:
        return _response(await _score(state, request, top_k))

    @app.get("/livez", summary="Is the process alive?")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Is a model loaded and warm?", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        return {"status": "ready", "model_version": state.ready().version}

    @app.get("/version", summary="What is served?")
    async def version() -> Version:
        return _version(state)

    @app.get("/", response_class=HTMLResponse, summary="A page to try it", include_in_schema=False)
    async def page() -> str:
        return importlib.resources.files("objrec.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/control/{action}", include_in_schema=False)
    async def control(request: Request, action: str, sha256: str = "") -> Response:
        return await _control(state, request, action, sha256)

    return app


async def _follow(models: LiveModels) -> None:
    while True:
        if models.current is None or models.changed():
            with contextlib.suppress(UserError):
                await asyncio.to_thread(models.follow)
        await asyncio.sleep(FOLLOW_SECONDS)


async def _score(state: State, request: Request, top_k: int | None) -> Answer:
    settings = state.settings
    if settings.key is not None and not _has_key(request, settings.key):
        raise RequestError(401, "key", "this endpoint needs its key in the header X-API-Key")
    loaded = state.ready()
    body = await _read_body(request, settings)
    kind = request.headers.get("content-type")

    def work() -> Answer:
        upload = handler.read(body, kind)
        if upload.url is not None:
            raise RequestError(422, "no_urls", "this endpoint does not fetch pictures: send the picture itself")
        return handler.predict(upload.data, loaded.predictor, top_k=top_k or upload.top_k or settings.top_k)

    return await state.scheduler.run(work)


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


def _has_key(request: Request, key: str) -> bool:
    given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode(), key.encode())


def _version(state: State) -> Version:
    loaded = state.models.current
    if loaded is None:
        empty: dict[str, Any] = dict.fromkeys(("model_version", "accuracy", "input_size", "runtime", "precision"))
        return Version(class_names=[], objrec=objrec.__version__, instance=state.instance, **empty)
    card, session = loaded.predictor.card, loaded.predictor.session
    return Version(
        model_version=loaded.version,
        accuracy=loaded.record.accuracy,
        class_names=card.class_names,
        input_size=card.input_size,
        runtime=session.runtime,
        precision=session.precision,
        objrec=objrec.__version__,
        instance=state.instance,
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
    return JSONResponse(answer.body, answer.status, dict(answer.headers))
