"""``/v2``: the Open Inference Protocol, as KServe, Triton and OpenVINO Model Server speak it over HTTP.

One model, named ``objrec``, with one input of encoded images (BYTES: raw after the header of the binary extension, or
base64 as JSON text) and three outputs. Source: https://github.com/kserve/open-inference-protocol, and Triton's
``protocol/extension_binary_data``. Answers are JSON, which every client reads.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

import objrec
from objrec.serving import request as handler
from objrec.serving.keys import check_key
from objrec.serving.request import MAX_IMAGES, Answer, RequestError, Upload, Uploads
from objrec.serving.schemas import PROBLEMS, Problem, ScoreQuery
from objrec.serving.score_route import ScoreRequest as Scoring
from objrec.serving.score_route import read_body

if TYPE_CHECKING:
    from objrec.serving.state import State

MODEL = "objrec"
HEADER_LENGTH = "inference-header-content-length"  # of the JSON in front of raw tensors
NOT_HERE: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "no such model or version"},
    503: PROBLEMS[503],
}
TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
        "datatype": {"const": "BYTES"},
        "data": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
    },
}
INPUTS = {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1}
REQUEST = {"type": "object", "required": ["inputs"], "properties": {"id": {"type": "string"}, "inputs": INPUTS}}
BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST}}}}
LENGTH = 4  # bytes before each element of a raw BYTES tensor, little-endian


def add_open_inference(app: FastAPI, state: State) -> None:
    """Add the routes under ``/v2``."""

    @app.get("/v2", summary="Open Inference Protocol: the server")
    async def server() -> dict[str, Any]:
        return {"name": "objrec", "version": objrec.__version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", summary="Open Inference Protocol: is the process alive?")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Open Inference Protocol: is a model loaded?", responses=NOT_HERE)
    @app.get("/v2/models/{name}/ready", summary="Open Inference Protocol: is this model loaded?", responses=NOT_HERE)
    @app.get("/v2/models/{name}/versions/{version}/ready", include_in_schema=False)
    async def ready(name: str = MODEL, version: str = "") -> dict[str, Any]:
        if state.draining:
            raise RequestError(503, "draining", "this endpoint is shutting down", retry_after=1)
        _check_name(state, name, version)
        return {"name": MODEL, "ready": True}

    @app.get("/v2/models/{name}", summary="Open Inference Protocol: the model", responses=NOT_HERE)
    @app.get("/v2/models/{name}/versions/{version}", include_in_schema=False)
    async def model(name: str, version: str = "") -> dict[str, Any]:
        _check_name(state, name, version)
        loaded = state.serving()
        return {
            "name": MODEL,
            "versions": [loaded.version],
            "platform": f"{loaded.predictor.session.runtime}_onnx",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "probability", "datatype": "FP32", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(loaded.predictor.card.class_names)]},
            ],
            "parameters": {"class_names": loaded.predictor.card.class_names},
        }

    @app.post(
        "/v2/models/{name}/infer",
        summary="Open Inference Protocol: classify images",
        responses={**PROBLEMS, **NOT_HERE},
        openapi_extra=BODY,
    )
    @app.post("/v2/models/{name}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str = "") -> Response:
        try:
            return JSONResponse(await _infer(state, request, name, version))
        except RequestError as error:  # clients of this protocol show what stands under "error"
            request.state.fields["error"] = error.code
            answer = Answer.of_error(error, request_id=request.state.request_id)
            return JSONResponse({**answer.body, "error": error.reason}, error.status, dict(answer.headers))


def _check_name(state: State, name: str, version: str) -> None:
    if name != MODEL:
        raise RequestError(404, "model", f"the model here is named {MODEL}")
    if version and version != state.serving().version:
        raise RequestError(404, "version", "another version of the model is served")


async def _infer(state: State, request: Request, name: str, version: str) -> dict[str, Any]:
    headers = dict(request.scope["headers"])
    check_key(state.settings.keys, headers)
    _check_name(state, name, version)
    loaded = state.serving()
    async with contextlib.AsyncExitStack() as held:
        body = await read_body(request.receive, headers, state, held)
        content, uploads = read(body, headers.get(HEADER_LENGTH.encode(), b""), max_bytes=state.settings.max_bytes)
        del body
        every = ScoreQuery(top_k=len(loaded.predictor.card.class_names))
        scoring = Scoring(state, loaded, uploads, None, every, request.state.made_id)
        answer = await scoring.answer()
    request.state.fields.update(scoring.log_fields(answer))
    results = answer.body["results"]
    for i, result in enumerate(results):
        if "error" in result:
            raise RequestError(422, result["error"], f"image {i}: {result['reason']}")
    return {
        "id": content.get("id") or request.state.made_id,
        "model_name": MODEL,
        "model_version": loaded.version,
        "outputs": _outputs(results, loaded.predictor.card.class_names, content.get("outputs")),
    }


def read(body: bytes, header_length: bytes, *, max_bytes: int) -> tuple[dict[str, Any], Uploads]:
    """Return the JSON object of a request, and the images in it or behind it. Raises RequestError."""
    length = int(header_length) if header_length.isdigit() else len(body)
    try:
        content = json.loads(body[:length])
        (tensor,) = content["inputs"]
        shape, kind = tensor["shape"], tensor["datatype"]
        count = int(shape[0]) if shape and all(type(n) is int and n > 0 for n in shape) else 0
        if not isinstance(content, dict) or any(n != 1 for n in shape[1:]):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = 'the body is not {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [N], "data": [...]}]}'
        raise RequestError(400, "bad_request", reason) from None
    if not _is_id(content.get("id")):
        raise RequestError(400, "id", "'id' should be a text")
    if kind != "BYTES":
        raise RequestError(400, "datatype", f"the input is of encoded images, datatype BYTES, not {str(kind)[:20]!r}")
    if count > MAX_IMAGES:
        raise RequestError(413, "too_many_images", f"{count} images in one request, more than {MAX_IMAGES}")
    images = _elements(body[length:]) if "data" not in tensor else _texts(tensor["data"])
    if len(images) != count or not count:
        raise RequestError(400, "shape", f"{len(images)} images, and a shape of {repr(shape)[:40]}")
    if any(len(data) > max_bytes for data in images):
        raise handler.too_large(max_bytes)
    return content, Uploads([Upload(data) for data in images], several=True)


def _is_id(value: Any) -> bool:
    """Return whether the answer can repeat ``value``: a text without half a surrogate pair, or None for no id."""
    return value is None or (isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value))


def _texts(data: Any) -> list[bytes]:
    rows = data if isinstance(data, list) else []
    flat = [text for row in rows for text in (row if isinstance(row, list) else [row])]
    if not all(isinstance(text, str) for text in flat):
        raise RequestError(400, "data", "'data' is not a list of base64 texts")
    return [handler.from_base64(text) for text in flat]


def _elements(raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= MAX_IMAGES:
        start = at + LENGTH
        at = start + int.from_bytes(raw[at:start], "little")
        if at > len(raw):
            raise RequestError(400, "cut_off", "the binary tensor ends in the middle of an element")
        found.append(raw[start:at])
    return found


def _outputs(results: list[Any], class_names: list[str], requested: Any) -> list[dict[str, Any]]:
    """Return the tensors that ``requested`` (``outputs`` of the request) names, all where it is absent or empty."""
    by_name = [{p["label"]: p["probability"] for p in result["predictions"]} for result in results]
    count = len(results)
    outputs = [
        {"name": "label", "datatype": "BYTES", "shape": [count], "data": [r["label"] for r in results]},
        {"name": "probability", "datatype": "FP32", "shape": [count], "data": [r["probability"] for r in results]},
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [count, len(class_names)],
            "data": [found[name] for found in by_name for name in class_names],
        },
    ]
    if requested in (None, []):
        return outputs
    known = [o["name"] for o in outputs]
    wanted = (
        [o.get("name") if isinstance(o, dict) else None for o in requested] if isinstance(requested, list) else [None]
    )
    if any(name not in known for name in wanted):
        raise RequestError(400, "outputs", "the outputs are label, probability and probabilities")
    return [o for o in outputs if o["name"] in wanted]
