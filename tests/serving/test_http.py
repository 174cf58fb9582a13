"""What clients of HTTP and of the Open Inference Protocol expect."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.serving import image, make_model, post, request, running_service, to_bytes

from objrec.deployment.service import Service

PREFIX = "/models/colours"
JPEG = {label: to_bytes(image(label, 1)) for label in ("red", "green", "blue")}
TEXT = base64.b64encode(JPEG["blue"]).decode()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("http")
    with running_service(root / "r", make_model(root / "m"), f"serve.root_path={PREFIX}") as started:
        yield started


def test_every_answer_has_an_id_that_the_server_made(live: Service) -> None:
    replies = [post(live.url, JPEG["blue"], **{"X-Request-ID": "mine"}) for _ in range(2)]
    assert [r.headers["x-request-id"] for r in replies] == ["mine", "mine"]
    assert len({r.body["request_id"] for r in replies} - {"mine"}) == 2
    body = json.dumps({"data": [TEXT, "AAAA", TEXT]}).encode()
    results = post(live.url, body, "application/json").body["results"]
    assert [r.get("label") for r in results] == ["blue", None, "blue"] and results[1]["error"] == "unsupported"
    assert len({r["request_id"] for r in results}) == 3


def test_a_path_prefix_of_a_proxy_may_be_there_or_not(live: Service) -> None:
    for prefix in ("", PREFIX):
        assert post(live.url, JPEG["blue"], path=f"{prefix}/score").body["label"] == "blue"
        assert request(live.url, "GET", f"{prefix}/readyz").status == 200
        assert request(live.url, "GET", f"{prefix}/v2/health/ready").status == 200
        schema = request(live.url, "GET", f"{prefix}/openapi.json").body
        assert schema["servers"] == [{"url": PREFIX}]
        assert b"<html" in request(live.url, "GET", f"{prefix}/").body
    assert request(live.url, "GET", "/models/other/readyz").status == 404


def test_the_documentation_asks_nobody_else(live: Service) -> None:
    page = request(live.url, "GET", "/docs")
    assert page.status == 200 and not re.search(rb"(src|href)=.?https?:|//cdn", page.body)
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_schema_refuses_what_the_code_refuses(live: Service) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    paths = request(live.url, "GET", "/openapi.json").body["paths"]
    schema = paths["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    for content in (
        *(
            {"data": d}
            for d in (TEXT, f"data:image/jpeg;base64,{TEXT}", [TEXT], "", "%%%", [], 3, None, [3], [TEXT] * 17)
        ),
        {},
        *({"data": TEXT, "top_k": k} for k in (0, 3, 3.0, 3.5, "3", True, None)),
        {"data": TEXT, "unknown": "yes"},
    ):
        status = post(live.url, json.dumps(content).encode(), "application/json").status
        assert jsonschema.Draft202012Validator(schema).is_valid(content) == (status == 200), content


# --- the Open Inference Protocol


@pytest.fixture
def triton(live: Service) -> Iterator[Any]:
    client = pytest.importorskip("tritonclient.http")
    with client.InferenceServerClient(live.url.removeprefix("http://")) as connected:
        yield connected


def tensor(images: list[bytes], *, binary: bool, shape: list[int] | None = None) -> Any:
    from tritonclient.http import InferInput

    given = InferInput("image", shape or [len(images)], "BYTES")
    if not binary:
        images = [base64.b64encode(data) for data in images]
    given.set_data_from_numpy(np.array(images, dtype=object).reshape(shape or -1), binary_data=binary)
    return given


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [None, [3, 1]])
def test_tritons_client_asks_for_several_images(triton: Any, binary: bool, shape: list[int] | None) -> None:
    result = triton.infer("objrec", [tensor(list(JPEG.values()), binary=binary, shape=shape)])
    assert [str(label) for label in result.as_numpy("label")] == ["red", "green", "blue"]
    every = result.as_numpy("probabilities")
    assert every.shape == (3, 3) and every.dtype == np.float32 and np.allclose(every.sum(axis=1), 1)
    assert np.allclose(every.max(axis=1), result.as_numpy("probability"))


def test_tritons_client_asks_what_there_is(triton: Any, live: Service) -> None:
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("objrec")
    assert triton.get_server_metadata()["name"] == "objrec" and not triton.is_model_ready("other")
    version = request(live.url, "GET", "/version").body["model_version"]
    found = triton.get_model_metadata("objrec", version)
    assert found["versions"] == [version] and found["inputs"][0]["datatype"] == "BYTES"


def test_tritons_client_chooses_outputs_and_reads_errors(triton: Any) -> None:
    from tritonclient.http import InferRequestedOutput
    from tritonclient.utils import InferenceServerException

    one = tensor([JPEG["red"]], binary=True)
    result = triton.infer("objrec", [one], outputs=[InferRequestedOutput("label")], request_id="mine")
    response = result.get_response()
    assert [o["name"] for o in response["outputs"]] == ["label"] and response["id"] == "mine"
    for name, images, reason in (
        ("other", [JPEG["red"]], "named objrec"),
        ("objrec", [JPEG["red"], b"hello"], "image 1: not an image"),
        ("objrec", [JPEG["red"]] * 17, "more than 16"),
    ):
        with pytest.raises(InferenceServerException, match=reason):
            triton.infer(name, [tensor(images, binary=True)])
    with pytest.raises(InferenceServerException, match="the outputs are label, probability"):
        triton.infer("objrec", [one], outputs=[InferRequestedOutput("logits")])


@pytest.mark.parametrize("wrong", ['"outputs": [3]', '"outputs": [{"name": []}]', '"outputs": 3'])
def test_outputs_that_are_none_are_refused(live: Service, wrong: str) -> None:
    given = f'"inputs": [{{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["{TEXT}"]}}]'
    reply = request(
        live.url,
        "POST",
        "/v2/models/objrec/infer",
        f"{{{wrong}, {given}}}".encode(),
        {"Content-Type": "application/json"},
    )
    assert reply.status == 400 and "the outputs are label" in reply.body["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"inputs": []}',
        b'{"inputs": [3]}',
        b'{"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}]}',
        b'{"inputs": [{"name": "image", "shape": [2], "datatype": "BYTES", "data": ["AAAA"]}]}',
        b'{"inputs": [{"name": "image", "shape": [-1], "datatype": "BYTES", "data": []}]}',
        b'{"inputs": [{"name": "image", "shape": "x", "datatype": "BYTES", "data": 3}]}',
        b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [3]}]}',
        b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}\xff\xff\xff\xff',
        b'{"inputs": [{"name": "image", "shape": "\\ud800", "datatype": "BYTES", "data": ["AAAA"]}]}',
        b'{"inputs": [{"name": "image", "shape": [1], "datatype": "\\ud800", "data": ["AAAA"]}]}',
        b'{"id": NaN, "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["%s"]}]}'
        % TEXT.encode(),
        b'{"id": "\\ud800", "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["%s"]}]}'
        % TEXT.encode(),
    ],
)
def test_what_is_no_request_of_this_protocol_is_said(live: Service, body: bytes) -> None:
    length = {"Inference-Header-Content-Length": str(body.find(b"\xff"))} if b"\xff" in body else {}
    reply = request(live.url, "POST", "/v2/models/objrec/infer", body, {"Content-Type": "application/json", **length})
    assert reply.status in (400, 422) and reply.body["error"]
