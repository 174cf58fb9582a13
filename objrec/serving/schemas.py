"""The types of requests and answers, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from objrec.serving.request import MAX_IMAGES, MAX_TOP_K


class Prediction(BaseModel):
    label: str
    probability: float


class Score(BaseModel):
    """The best label, and the best few with their probabilities.

    With ``unknown=true`` an image of none of the classes has the label null, the reason ``unknown``, and
    its ``known_score`` beside the ``threshold`` that it is below.
    """

    model_config = ConfigDict(protected_namespaces=())

    label: str | None
    probability: float
    predictions: list[Prediction]
    model_version: str
    reason: str | None = None
    known_score: float | None = None
    threshold: float | None = None
    request_id: str | None = None


class Problem(BaseModel):
    """Why there is no answer: ``error`` in a word, ``reason`` for people."""

    error: str
    reason: str
    request_id: str | None = None


class Scores(BaseModel):
    """The answers to several images, in their order; one that fails, fails alone."""

    results: list[Score | Problem]


class TrainedOn(BaseModel):
    """What is known of the training images."""

    num_images: int | None
    sources: list[str]


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
    trained_on: TrainedOn | None
    knows_unknown: bool
    examples: int


TopK = Annotated[int | None, Field(ge=1, le=MAX_TOP_K, description="how many labels to answer with")]
Unknown = Annotated[bool, Field(description="whether to answer with no label for an image of none of the classes")]


class ScoreQuery(BaseModel):
    """The parameters of a scoring request's address."""

    top_k: TopK = None
    unknown: Unknown = False


ScoreQueryParams = Annotated[ScoreQuery, Query()]
BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "minLength": 4,
    "pattern": r"^(data:[^,]*;base64,)?[A-Za-z0-9+/_\-\s]+=*\s*$",
}
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
                            "oneOf": [
                                BASE64,
                                {"type": "array", "items": BASE64, "minItems": 1, "maxItems": MAX_IMAGES},
                            ],
                            "description": "the image, or a list of images, as base64",
                        },
                        "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOP_K},
                        "unknown": {"type": "boolean"},
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": MAX_IMAGES,
                        },
                        "top_k": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K},
                    },
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
        415: "not an image, or not in a format that is read",
        422: "damaged or incomplete",
        414: "path and query are too long",
        429: "the queue is full, or the memory for images",
        431: "the headers are too many or too long",
        503: "not ready, or out of time",
    }.items()
}
