"""From bytes and a content type to an answer, without a server."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import CLASSES, image, make_model, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from objrec.inference.predictor import Predictor
from objrec.serving import request as handler
from objrec.serving.request import RequestError

JPEG = to_bytes(image("green", 1))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(make_model(tmp_path_factory.mktemp("model")))


def as_json(data: Any, **more: Any) -> bytes:
    return json.dumps({"data": data, **more}).encode()


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, str]:
    rows = [
        f"--X\r\nContent-Disposition: form-data; {head}\r\n{kind}\r\n".encode() + data for head, kind, data in parts
    ]
    return b"\r\n".join([*rows, b"--X--\r\n"]), "multipart/form-data; boundary=X"


PLAIN = base64.b64encode(JPEG).decode()
WAYS = {
    "json": (as_json(PLAIN), "application/json"),
    "json with charset": (as_json(PLAIN), "application/json; charset=utf-8"),
    "json without a type": (as_json(PLAIN), None),
    "line breaks": (as_json(base64.encodebytes(JPEG).decode()), "application/json"),
    "data url": (as_json(f"data:image/jpeg;base64,{PLAIN}"), "application/json"),
    "data url in capitals": (as_json(f"DATA:IMAGE/JPEG;BASE64,{PLAIN}"), "application/json"),
    "url-safe": (as_json(base64.urlsafe_b64encode(JPEG).decode()), "application/json"),
    "no padding": (as_json(PLAIN.rstrip("=")), "application/json"),
    "raw": (JPEG, "image/jpeg"),
    "raw under another type": (JPEG, "image/png"),
    "raw without a type": (JPEG, None),
    "octets": (JPEG, "application/octet-stream"),
    "form": form(('name="file"; filename="a.jpg"', "Content-Type: image/jpeg\r\n", JPEG)),
    "form with top_k": form(
        ('name="top_k"', "", b"3"), ('name="file"; filename="a.jpg"', "Content-Type: image/jpeg\r\n", JPEG)
    ),
    "form with an extended boundary": (
        form(('name="file"; filename="a.jpg"', "", JPEG))[0],
        "multipart/form-data; boundary*=utf-8''X",
    ),
    "form with a preamble": (
        b"This is a multi-part message.\r\n" + form(('name="file"; filename="a.jpg"', "", JPEG))[0],
        "multipart/form-data; boundary=X",
    ),
    "form with base64": form(('name="data"', "", PLAIN.encode())),
    "form with a data URL": form(('name="data"', "", f"data:image/jpeg;base64,{PLAIN}".encode())),
    "form with a file that says it is base64": form(
        ('name="file"; filename="a"', "Content-Transfer-Encoding: base64\r\n", base64.encodebytes(JPEG))
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_send_an_image_gives_the_same_answer(way: str, predictor: Predictor) -> None:
    answer = handler.score(*WAYS[way], predictor)
    expected = predictor.predict([JPEG])[0]
    assert answer.status == 200 and answer.body["label"] == "green" == expected[0][0]
    assert [(p["label"], p["probability"]) for p in answer.body["predictions"]] == expected
    assert answer.body["probability"] == expected[0][1] and answer.body["model_version"] == predictor.card.sha256


BAD: dict[str, tuple[bytes, str | None, int]] = {
    "garbage json": (b"{'data': 1}", "application/json", 422),
    "a list": (b"[1]", "application/json", 422),
    "deep json": (b"[" * 100_000, "application/json", 422),
    "no data": (b"{}", "application/json", 422),
    "a number": (as_json(3), "application/json", 422),
    "not base64": (as_json("%%%"), "application/json", 422),
    "not ascii": (as_json("äöü"), "application/json", 422),
    "a data url of text": (as_json("data:text/plain,hello"), "application/json", 422),
    "bad top_k": (as_json(PLAIN, top_k=0), "application/json", 422),
    "boolean top_k": (as_json(PLAIN, top_k=True), "application/json", 422),
    "empty": (b"", "image/jpeg", 422),
    "empty base64": (as_json(""), "application/json", 422),
    "text": (b"hello", "text/plain", 415),
    "text as image": (b"hello", "image/jpeg", 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415),
    "cut off": (JPEG[: len(JPEG) // 2], "image/jpeg", 422),
    "form without a file": (*form(('name="note"', "", b"hi")), 422),
    "form with seventeen files": (*form(*[('name="file"; filename="a.jpg"', "", JPEG)] * 17), 413),
    "form with text under data": (*form(('name="data"', "", b"hello, world")), 422),
    "an empty list": (as_json([]), None, 422),
    "a list of numbers": (as_json([PLAIN, 1]), None, 422),
    "a long list": (as_json([PLAIN] * 17), None, 413),
    "form cut off": (form(('name="file"; filename="a.jpg"', "", JPEG))[0][:-9], "multipart/form-data; boundary=X", 422),
    "form without boundary": (form(('name="file"; filename="a.jpg"', "", JPEG))[0], "multipart/form-data", 422),
    "form of garbage": (b"\x00\xff" * 50, "multipart/form-data; boundary=X", 422),
    "form of too many parts": (*form(*[('name="note"', "", b"")] * 21), 422),
    "form with an odd boundary": (b"--X--", "multipart/form-data; boundary*1*=idna'y'%ff", 422),
    "odd content type": (JPEG, "image/jpeg/../..\x00; ;;=", 200),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_a_status(case: str, predictor: Predictor) -> None:
    body, kind, status = BAD[case]
    answer = handler.score(body, kind, predictor)
    assert answer.status == status
    if status != 200:
        assert set(answer.body) == {"error", "reason"} and answer.body["reason"]


def test_several_images_are_answered_in_a_list_and_fail_alone(predictor: Predictor) -> None:
    blue = to_bytes(image("blue", 1))
    texts = [base64.b64encode(data).decode() for data in (JPEG, b"hello", blue)]
    files = form(*[('name="file"; filename="a.jpg"', "", data) for data in (JPEG, b"hello", blue)])
    for body, kind in ((as_json(texts), "application/json"), files):
        answer = handler.score(body, kind, predictor)
        first, second, third = answer.body["results"]
        assert answer.status == 200 and (first["label"], third["label"]) == ("green", "blue")
        assert second["error"] == "unsupported" and second["reason"]
    assert [r["label"] for r in handler.score(as_json(texts[:1]), None, predictor).body["results"]] == ["green"]


def test_a_form_of_nothing_but_parts_is_given_up_at_once(predictor: Predictor) -> None:
    body = b"--X\r\n\r\n\r\n" * 2_000_000 + b"--X--\r\n"
    began = time.thread_time()
    answer = handler.score(body, "multipart/form-data; boundary=X", predictor)
    assert answer.status == 422 and time.thread_time() - began < 5  # to read them all took 21 s


def test_limits_on_bytes_and_pixels(predictor: Predictor, tmp_path: Path) -> None:
    assert handler.score(JPEG, "image/jpeg", predictor, max_bytes=len(JPEG) - 1).status == 413
    assert handler.score(as_json(PLAIN), None, predictor, max_bytes=len(JPEG) - 1).status == 413
    small = Predictor(predictor.card, predictor.session, max_pixels=100)
    assert handler.score(JPEG, "image/jpeg", small).status == 413


def test_top_k_of_the_request_wins_and_is_bounded_by_the_classes(predictor: Predictor) -> None:
    assert len(handler.score(as_json(PLAIN, top_k=2), None, predictor, top_k=1).body["predictions"]) == 2
    assert len(handler.score(as_json(PLAIN, top_k=99), None, predictor).body["predictions"]) == len(CLASSES)


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.dictionaries(st.text(), st.text() | st.integers() | st.none()).map(lambda d: json.dumps(d).encode()),
    kind=st.none() | st.sampled_from([k for _, k in WAYS.values()]) | st.text(max_size=40),
)
def test_any_bytes_are_read_or_refused(body: bytes, kind: str | None) -> None:
    try:
        upload = handler.read(body, kind)
    except RequestError as error:
        assert error.status in (413, 415, 422)
    else:
        assert all(isinstance(image.data, bytes) for image in upload.images)
