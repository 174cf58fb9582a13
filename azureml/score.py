"""The scoring script of the managed online endpoint: the answers of the local endpoint, under Azure's own server.

The server calls ``init`` once and ``run`` for every request to ``/score``. ``AZUREML_MODEL_DIR`` is where the
platform put the model; ``OBJREC_SERVING`` holds the limits (JSON), as the deploy step took them from the configuration.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the snapshot's root, which holds objrec

import numpy as np
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

from objrec.inference.predictor import Predictor
from objrec.serving import request as handler

predictor: Predictor
limits: dict[str, int]


def init() -> None:
    global predictor, limits
    limits = json.loads(os.environ["OBJREC_SERVING"])
    predictor = Predictor.load(_model_dir(Path(os.environ["AZUREML_MODEL_DIR"])), max_pixels=limits["max_pixels"])
    size = predictor.card.input_size
    predictor.probabilities(np.zeros((1, size, size, 3), np.uint8))  # the first one is slow: not a client's


@rawhttp  # type: ignore[untyped-decorator]
def run(request: AMLRequest) -> AMLResponse:
    answer = _answer(request)
    return AMLResponse(dict(answer.body), answer.status, dict(answer.headers), json_str=True)


def _answer(request: Any) -> handler.Answer:
    try:
        if request.method != "POST":
            raise handler.RequestError(405, "method", "send an image by POST")
        if (request.content_length or 0) > limits["max_bytes"] * 4 // 3 + 65536:  # base64 and a form's frame
            raise handler.too_large(limits["max_bytes"])
        top_k = handler.check_top_k(request.args.get("top_k"))
        unknown = request.args.get("unknown", "").lower() in ("1", "true", "yes", "on")
        uploads = handler.read(request.get_data(cache=False), request.content_type, max_bytes=limits["max_bytes"])

        def one(upload: handler.Upload) -> handler.Answer:
            logits = predictor.logits(handler.decode(upload, predictor)[None])
            k = top_k or upload.top_k or limits["top_k"]
            return handler.answer(logits, predictor, top_k=k, unknown=unknown or upload.unknown)

        return handler.answer_all(uploads, one)
    except handler.RequestError as error:
        return handler.Answer.of_error(error)


def _model_dir(place: Path) -> Path:
    """Return the model folder: the platform puts it below ``place``, under the name that it was uploaded with."""
    found = sorted(place.glob("**/model.json"), key=lambda p: len(p.parts))
    return found[0].parent if found else place
