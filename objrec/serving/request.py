"""From a request's bytes to an answer's status and JSON: no web framework, so that any server can use it."""

from __future__ import annotations

import binascii
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from objrec.config.errors import UserError
from objrec.images.decode import ImageError, NotReduced

if TYPE_CHECKING:
    from objrec.inference.predictor import Predictor

MAX_TOP_K = 1_000_000
MAX_IMAGES = 16  # of one request
MAX_PARTS = MAX_IMAGES + 4  # of a form: each costs more than its bytes
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
    """What a client sent: an encoded image, how many labels it wants, and whether ``unknown`` may be the answer."""

    data: bytes
    top_k: int | None = None
    unknown: bool = False
    url: str | None = None  # instead of data; who has a downloader may fetch it


@dataclass(frozen=True, slots=True)
class Uploads:
    """The images of one request. ``several``: whether they are answered as a list, which a list of one is too."""

    images: Sequence[Upload]
    several: bool = False


def score(
    body: bytes, content_type: str | None, predictor: Predictor, *, top_k: int = 5, max_bytes: int | None = None
) -> Answer:
    """Answer a scoring request. Never raises for what a client can do wrong."""

    def one(upload: Upload) -> Answer:
        logits = predictor.logits(decode(upload, predictor)[None])
        return answer(logits, predictor, top_k=upload.top_k or top_k, unknown=upload.unknown)

    try:
        return answer_all(read(body, content_type, max_bytes=max_bytes), one)
    except RequestError as error:
        return Answer.of_error(error)


def answer_all(uploads: Uploads, one: Callable[[Upload], Answer], *, request_id: str | None = None) -> Answer:
    """Answer each image; of several, each fails alone.

    Args:
        request_id: made by the server; each answer carries it, with a number where there are several.

    Raises:
        RequestError: of the only image.
    """

    def named(answer: Answer, suffix: str = "") -> dict[str, Any]:
        return {**answer.body, **({} if request_id is None else {"request_id": f"{request_id}{suffix}"})}

    if not uploads.several:
        return Answer(200, named(one(uploads.images[0])))
    results = []
    for i, upload in enumerate(uploads.images):
        try:
            found = one(upload)
        except RequestError as error:
            found = Answer.of_error(error)
        results.append(named(found, f"-{i}"))
    return Answer(200, {"results": results})


def decode(upload: Upload, predictor: Predictor, *, patient: bool = True) -> Any:
    """Return uint8 (size, size, 3). Raises RequestError; and NotReduced, see ``objrec.images.decode.decode_stored``."""
    data = image_of(upload)
    with image_errors():
        return predictor.card.preprocessing.pixels(data, max_pixels=predictor.max_pixels, patient=patient)


def image_of(upload: Upload) -> bytes:
    """Return the encoded image. Raises RequestError where there is none."""
    if upload.url is not None:
        raise RequestError(422, "no_urls", "this endpoint does not fetch images: send the image itself")
    if not upload.data:
        raise RequestError(422, "empty", "the request holds no image")
    return upload.data


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Turn an ImageError into a RequestError."""
    try:
        yield
    except NotReduced:
        raise
    except ImageError as error:
        raise RequestError(STATUS_OF[error.status], error.status, error.reason) from None


def answer(logits: Any, predictor: Predictor, *, top_k: int, unknown: bool = False) -> Answer:
    """Turn (1, classes) logits into the contract's answer.

    Args:
        unknown: whether to answer with the label None and a reason for an image of none of the classes.

    Raises:
        RequestError: ``unknown`` is asked for and the model has no threshold for it.
    """
    from objrec.inference.scores import softmax

    ranked = predictor.ranked(softmax(logits, predictor.card.temperature)[0], top_k)
    label, probability = ranked[0]
    try:
        score, threshold = predictor.known_score(logits) if unknown else (0.0, 0.0)
    except UserError as error:
        raise RequestError(422, "no_threshold", str(error)) from None
    rejected = score < threshold
    return Answer(
        200,
        {
            "label": None if rejected else label,
            **({"reason": "unknown", "known_score": score, "threshold": threshold} if rejected else {}),
            "probability": probability,
            "predictions": [{"label": name, "probability": p} for name, p in ranked],
            "model_version": predictor.card.sha256,
        },
    )


def read(body: bytes, content_type: str | None, *, max_bytes: int | None = None) -> Uploads:
    """Take the images out of a request body.

    ``application/json`` holds base64 under ``data`` (line breaks and a ``data:`` prefix are fine), or a list of such;
    ``multipart/form-data`` files, or base64 under ``data``; ``image/*`` and ``application/octet-stream`` the bytes of
    one image. Without a content type the body is looked at.

    Raises:
        RequestError: 413 for an image of more than ``max_bytes``, 415 for another content type, 422 for a body that
            is not what it says.
    """
    uploads = _read(body, content_type)
    if max_bytes is not None and any(len(upload.data) > max_bytes for upload in uploads.images):
        raise too_large(max_bytes)
    return uploads


def _read(body: bytes, content_type: str | None) -> Uploads:
    kind, parameters = parse_content_type(content_type)
    if not kind:
        kind = "application/json" if body.lstrip()[:1] == b"{" else "application/octet-stream"
    if kind == "application/json" or kind.endswith("+json"):
        return _read_json(body)
    if kind == "multipart/form-data":
        return _read_multipart(body, parameters.get("boundary", ""))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Uploads([Upload(body)])
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


def _read_json(body: bytes) -> Uploads:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(422, "bad_json", "the body is not JSON") from None
    if not isinstance(content, dict):
        raise RequestError(422, "bad_json", 'the body is not a JSON object like {"data": "<base64>"}')
    top_k = check_top_k(content.get("top_k"), text=False)
    data, url = content.get("data"), content.get("url")
    unknown = content.get("unknown", False)
    if not isinstance(unknown, bool):
        raise RequestError(422, "unknown", "'unknown' should be true or false")
    if data is None and isinstance(url, str):
        return Uploads([Upload(b"", top_k=top_k, unknown=unknown, url=url)])
    several = isinstance(data, list)
    texts: list[Any] = data if isinstance(data, list) else [data]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(422, "no_data", "the JSON object has no base64 text, or list of such, under 'data'")
    _check_number(len(texts))
    return Uploads([Upload(from_base64(text), top_k=top_k, unknown=unknown) for text in texts], several)


def _check_number(images: int) -> None:
    if images > MAX_IMAGES:
        raise RequestError(413, "too_many_images", f"{images} images in one request, more than {MAX_IMAGES}")


def check_top_k(value: Any, *, text: bool = True) -> int | None:
    """Return a number of predictions to answer with, or None where none is given. Raises RequestError.

    ``text``: whether it may be written as text, as in addresses and forms; in JSON it is a number, whole but maybe 3.0.
    """
    if value is None:
        return None
    try:
        whole = value.is_integer() if isinstance(value, float) else text and isinstance(value, str)
        number = int(value) if whole else value
    except ValueError:
        number = 0
    if type(number) is not int or not 1 <= number <= MAX_TOP_K:
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


def _read_multipart(body: bytes, boundary: str) -> Uploads:
    fields = _parts(body, boundary)
    top_k = next((check_top_k(part.data.decode("ascii", "replace")) for part in fields if part.name == "top_k"), None)
    files = [part.image() for part in fields if part.is_file or part.name in ("data", "file", "image")]
    if not files:
        raise RequestError(422, "bad_form", "the form holds no file, nor base64 under 'data'")
    _check_number(len(files))
    return Uploads([Upload(data, top_k=top_k) for data in files], several=len(files) > 1)


@dataclass(frozen=True, slots=True)
class _Part:
    """Of a form. encoded: whether it says that it is base64."""

    name: str
    is_file: bool
    encoded: bool
    data: bytes

    def image(self) -> bytes:
        """Return the image's bytes. A field that is no file and all ASCII is base64: no image's bytes are."""
        if self.encoded or (not self.is_file and self.data.isascii() and b"\0" not in self.data):
            return from_base64(self.data.decode("ascii", "replace"))
        return self.data


def _parts(body: bytes, boundary: str) -> Sequence[_Part]:
    """Return the parts of a form. What comes before the first of them is no part of it (RFC 2046, 5.1.1)."""
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
        delimiter = boundary.encode("latin-1")
        parser = MultipartParser(delimiter, callbacks)
        first = 0 if body.startswith(b"--" + delimiter) else body.find(b"\r\n--" + delimiter) + 2
        parser.write(body[first:] if first > 1 else body)
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
        encoded = str(disposition.get("content-transfer-encoding", "")).strip().lower() == "base64"
        parts.append(_Part(name if isinstance(name, str) else "", is_file, encoded, bytes(content)))
    return parts
