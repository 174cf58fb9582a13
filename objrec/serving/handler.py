"""From a request's bytes to an answer's status and JSON: no web framework, so that any server can use it."""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from objrec.config.errors import UserError
from objrec.images.decode import ImageError

if TYPE_CHECKING:
    from objrec.serving.predictor import Predictor

MAX_TOP_K = 1_000_000
MAX_PARTS = 16  # of a form: each costs more than its bytes
STATUS_OF = {"corrupt": 422, "unsupported": 415, "too_large": 413, "too_small": 422}


class RequestError(Exception):
    """A request that cannot be answered with a prediction.

    Attributes:
        status: of the HTTP answer.
        code: in a word, for machines; ``reason`` is for people.
    """

    def __init__(self, status: int, code: str, reason: str, *, retry_after: int | None = None) -> None:
        self.status, self.code, self.reason, self.retry_after = status, code, reason, retry_after
        super().__init__(f"{status} {code}: {reason}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON object that goes with it."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_error(cls, error: RequestError, *, request_id: str | None = None) -> Answer:
        body = {"error": error.code, "reason": error.reason}
        if request_id is not None:
            body["request_id"] = request_id
        return cls(error.status, body, {} if error.retry_after is None else {"Retry-After": str(error.retry_after)})


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent: an encoded picture, how many labels it wants, and whether ``unknown`` may be the answer."""

    data: bytes
    top_k: int | None = None
    unknown: bool = False
    url: str | None = None  # instead of data; who has a downloader may fetch it


def score(
    body: bytes, content_type: str | None, predictor: Predictor, *, top_k: int = 5, max_bytes: int | None = None
) -> Answer:
    """Answer a scoring request. Never raises for what a client can do wrong."""
    try:
        upload = read(body, content_type, max_bytes=max_bytes)
        logits = predictor.logits(decode(upload, predictor)[None])
        return answer(logits, predictor, top_k=upload.top_k or top_k, unknown=upload.unknown)
    except RequestError as error:
        return Answer.of_error(error)


def decode(upload: Upload, predictor: Predictor) -> Any:
    """Return uint8 (size, size, 3). Raises RequestError."""
    if upload.url is not None:
        raise RequestError(422, "no_urls", "this endpoint does not fetch pictures: send the picture itself")
    if not upload.data:
        raise RequestError(422, "empty", "the request holds no picture")
    try:
        return predictor.pixels(upload.data)
    except ImageError as error:
        raise RequestError(STATUS_OF[error.status], error.status, error.reason) from None


def answer(logits: Any, predictor: Predictor, *, top_k: int, unknown: bool = False) -> Answer:
    """Turn (1, classes) logits into the contract's answer.

    Args:
        unknown: whether to answer with the label None and a reason for a picture of none of the classes.

    Raises:
        RequestError: ``unknown`` is asked for and the model has no threshold for it.
    """
    from objrec.serving.predictor import softmax

    ranked = predictor.ranked(softmax(logits, predictor.card.temperature)[0], top_k)
    label, probability = ranked[0]
    try:
        rejected = unknown and bool(predictor.is_unknown(logits)[0])
    except UserError as error:
        raise RequestError(422, "no_threshold", str(error)) from None
    return Answer(
        200,
        {
            "label": None if rejected else label,
            **({"reason": "unknown"} if rejected else {}),
            "probability": probability,
            "predictions": [{"label": name, "probability": p} for name, p in ranked],
            "model_version": predictor.card.sha256,
        },
    )


def read(body: bytes, content_type: str | None, *, max_bytes: int | None = None) -> Upload:
    """Take the picture out of a request body.

    ``application/json`` holds base64 under ``data`` (line breaks and a ``data:`` prefix are fine),
    ``multipart/form-data`` a file, ``image/*`` and ``application/octet-stream`` the bytes themselves. Without a
    content type the body is looked at.

    Raises:
        RequestError: 413 for a picture of more than ``max_bytes``, 415 for another content type, 422 for a body that
            is not what it says.
    """
    upload = _read(body, content_type)
    if max_bytes is not None and len(upload.data) > max_bytes:
        raise too_large(max_bytes)
    return upload


def _read(body: bytes, content_type: str | None) -> Upload:
    kind, parameters = parse_content_type(content_type)
    if not kind:
        kind = "application/json" if body.lstrip()[:1] == b"{" else "application/octet-stream"
    if kind == "application/json" or kind.endswith("+json"):
        return _read_json(body)
    if kind == "multipart/form-data":
        return _read_multipart(body, parameters.get("boundary", ""))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Upload(body)
    raise RequestError(
        415,
        "content_type",
        f"content type {kind} is not one of image/*, application/json with base64 under 'data', multipart/form-data",
    )


def too_large(max_bytes: int) -> RequestError:
    return RequestError(413, "too_many_bytes", f"the request is larger than {max_bytes} bytes")


def parse_content_type(value: str | None) -> tuple[str, dict[str, str]]:
    """Return the type in lower case and its parameters."""
    kind, _, rest = (value or "").partition(";")
    kind = kind.strip().lower()
    if not rest:
        return kind, {}
    from email.message import Message

    message = Message()
    message["content-type"] = value or ""
    found = message.get_params([], unquote=True)[1:]
    return kind, {k.lower(): v if isinstance(v, str) else v[2] for k, v in found}  # boundary*=utf-8''x is (.., .., x)


def _read_json(body: bytes) -> Upload:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(422, "bad_json", "the body is not JSON") from None
    if not isinstance(content, dict):
        raise RequestError(422, "bad_json", 'the body is not a JSON object like {"data": "<base64>"}')
    top_k = check_top_k(content.get("top_k"))
    data, url = content.get("data"), content.get("url")
    unknown = content.get("unknown", False)
    if not isinstance(unknown, bool):
        raise RequestError(422, "unknown", "'unknown' should be true or false")
    if data is None and isinstance(url, str):
        return Upload(b"", top_k=top_k, unknown=unknown, url=url)
    if not isinstance(data, str):
        raise RequestError(422, "no_data", "the JSON object has no text under 'data'")
    return Upload(from_base64(data), top_k=top_k, unknown=unknown)


def check_top_k(value: Any) -> int | None:
    """Return a number of predictions to answer with, or None where none is given. Raises RequestError."""
    if value is None:
        return None
    try:
        number = value if type(value) is int else int(value) if isinstance(value, str) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_TOP_K:
        raise RequestError(422, "top_k", f"top_k is {str(value)[:40]!r}, not a number from 1")
    return number


def from_base64(text: str) -> bytes:
    """Decode base64, standard or URL-safe, with or without padding, line breaks and a ``data:`` prefix."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or "base64" not in head.lower():
            raise RequestError(422, "bad_base64", "the data URL is not base64")
    try:
        raw = text.encode("ascii")
        try:
            return binascii.a2b_base64(raw, strict_mode=True)  # the common case at full speed
        except binascii.Error:
            raw = b"".join(raw.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
            return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise RequestError(422, "bad_base64", "'data' is not base64") from None


def _read_multipart(body: bytes, boundary: str) -> Upload:
    fields = list(_parts(body, boundary))
    top_k = next((check_top_k(data.decode("ascii", "replace")) for name, _, data in fields if name == "top_k"), None)
    files = [data for name, is_file, data in fields if is_file or name in ("data", "file", "image")]
    if len(files) != 1:
        raise RequestError(422, "bad_form", f"the form holds {len(files)} files, not one")
    return Upload(files[0], top_k=top_k)


def _parts(body: bytes, boundary: str) -> Sequence[tuple[str, bool, bytes]]:
    """Return (name, is a file, content) of each part of a form."""
    from email.parser import BytesHeaderParser

    from python_multipart import MultipartParser
    from python_multipart.exceptions import FormParserError

    found: list[tuple[bytearray, bytearray]] = []

    def begin() -> None:
        if len(found) == MAX_PARTS:
            raise RequestError(422, "bad_form", f"the form has more than {MAX_PARTS} parts")
        found.append((bytearray(), bytearray()))

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": lambda data, start, end: found[-1][0].extend(data[start:end]),
        "on_header_value": lambda data, start, end: found[-1][0].extend(b": " + data[start:end]),
        "on_header_end": lambda: found[-1][0].extend(b"\r\n"),
        "on_part_data": lambda data, start, end: found[-1][1].extend(data[start:end]),
    }
    ended = []
    callbacks["on_end"] = lambda: ended.append(True)
    try:
        parser = MultipartParser(boundary.encode("latin-1"), callbacks)
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeEncodeError, ValueError) as error:
        raise RequestError(422, "bad_form", f"the form is damaged: {error}") from None
    if not ended:
        raise RequestError(422, "bad_form", "the form is cut off")
    parts = []
    for headers, content in found:
        disposition = BytesHeaderParser().parsebytes(bytes(headers))
        name = disposition.get_param("name", "", "content-disposition")
        is_file = disposition.get_param("filename", None, "content-disposition") is not None
        parts.append((name if isinstance(name, str) else "", is_file, bytes(content)))
    return parts
