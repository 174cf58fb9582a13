"""The HTTP application: its state, its routes, and failures of one shape."""

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
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

import objrec
from objrec.config.errors import UserError
from objrec.serving.keys import check_key
from objrec.serving.middleware import RequestObserver
from objrec.serving.open_inference import add_open_inference
from objrec.serving.request import Answer, RequestError
from objrec.serving.schemas import PROBLEMS, Problem, Version
from objrec.serving.score_route import add_score_route
from objrec.serving.state import State

logger = logging.getLogger("objrec.serving")
AGAIN_SECONDS = 60.0  # until a model that could not be loaded is tried again: what was wrong may have passed
FOLLOW_SECONDS = 1.0  # how often the alias is looked at; commands also say at once when they moved it
NO_EXAMPLE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    404: {"model": Problem, "description": "there is no such example"},
    **{status: PROBLEMS[status] for status in (401, 422, 503)},
}
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src 'self' blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_app(state: State) -> FastAPI:
    """Build the application around ``state``."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower = asyncio.create_task(_follow(state))
        yield
        follower.cancel()
        state.scheduler.close()
        state.heavy.close()

    app = FastAPI(
        title="objrec",
        version=objrec.__version__,
        description="What's in this image? Send it to /score.",
        lifespan=lifespan,
        root_path=state.settings.root_path,
        docs_url=None,
        redoc_url=None,
    )
    _add_error_handlers(app)
    add_score_route(app, state)  # its middleware first: what is added later lies around it
    if state.settings.cors:
        from starlette.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware, allow_origins=state.settings.cors, allow_methods=["POST"], allow_headers=["*"]
        )
    app.add_middleware(RequestObserver, state=state)
    add_open_inference(app, state)
    _add_page(app, "/", "page.html")
    _add_page(app, "/docs", "docs.html")

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

    @app.get("/examples/{number}", summary="A test image to try", response_class=Response, responses=NO_EXAMPLE)
    async def example(request: Request, number: int) -> Response:
        check_key(state.settings.keys, dict(request.scope["headers"]))
        images = state.serving().examples
        if not 0 <= number < len(images):
            raise RequestError(404, "no_example", f"there are {len(images)} examples (serve.examples)")
        return Response(images[number], media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    @app.get("/metrics", summary="For Prometheus", response_class=Response, responses={401: PROBLEMS[401]})
    async def metrics(request: Request) -> Response:
        check_key(state.settings.keys, dict(request.scope["headers"]))
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/control/{action}", include_in_schema=False)
    async def control(request: Request, action: str, sha256: str = "") -> Response:
        return await _control(state, request, action, sha256)

    return app


def _add_page(app: FastAPI, path: str, file: str) -> None:
    """Add a page that asks nobody but this endpoint."""
    html = importlib.resources.files("objrec.serving").joinpath(file).read_text(encoding="utf-8")

    @app.get(path, response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})


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
    lost, again = 0, 0.0
    while True:
        now = time.monotonic()
        failed = state.models.problem is not None and now >= again
        if state.models.current is None or state.models.changed() or failed:
            again = now + AGAIN_SECONDS
            with contextlib.suppress(Exception):  # whatever it was, it is logged, and the next alias must be followed
                await asyncio.to_thread(state.models.follow)
        await asyncio.sleep(FOLLOW_SECONDS)
        lost = lost + 1 if state.is_lost() else 0
        if lost == 3:  # once could be a file that is being replaced
            logger.error("leaving: the state file no longer names this service")
            os.kill(os.getpid(), signal.SIGTERM)


def _version(state: State) -> Version:
    loaded, common = state.models.current, {
        "problem": state.models.problem,
        "objrec": objrec.__version__,
        "instance": state.instance,
        "key_required": bool(state.settings.keys),
    }  # fmt: skip
    if loaded is None:
        empty = dict.fromkeys(("model_version", "accuracy", "accuracy_drop", "input_size", "runtime", "precision"))
        known: dict[str, Any] = {"class_names": [], "trained_on": None, "knows_unknown": False, "examples": 0}
        return Version.model_validate({**known, **empty, **common})
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
            "trained_on": {"num_images": card.num_training_images, "sources": card.sources},
            "knows_unknown": card.unknown is not None,
            "examples": len(loaded.examples),
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
