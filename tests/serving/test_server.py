"""The endpoint as a client meets it: a real service in a process of its own."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.serving import (
    CLASSES,
    Reply,
    connect,
    image,
    make_model,
    post,
    read_all,
    request,
    running_service,
    to_bytes,
)
from PIL import Image

from objrec.deployment.service import Service
from objrec.inference.predictor import Predictor
from objrec.models.card import ModelCard

JPEG = to_bytes(image("blue", 1))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("registry")
    limits = ("serve.timeout=30", "serve.max_bytes=1000000", "serve.max_pixels=1000000", "serve.queue=200")
    with running_service(root, model_dir, *limits) as started:
        yield started


def test_the_answer_is_what_the_predictor_computes(live: Service, model_dir: Path) -> None:
    predictor = Predictor.load(model_dir)
    for label in CLASSES:
        data = to_bytes(image(label, 5))
        reply = post(live.url, json.dumps({"data": base64.b64encode(data).decode()}).encode(), "application/json")
        expected = predictor.predict([data])[0]
        given = [(p["label"], p["probability"]) for p in reply.body["predictions"]]
        assert [n for n, _ in given] == [n for n, _ in expected]
        assert [p for _, p in given] == pytest.approx([p for _, p in expected], abs=1e-6)
        assert reply.body["model_version"] == ModelCard.load(model_dir).sha256


def test_health_version_and_docs(live: Service, model_dir: Path) -> None:
    version = ModelCard.load(model_dir).sha256
    assert request(live.url, "GET", "/livez").body == {"status": "alive"}
    assert request(live.url, "GET", "/readyz").body == {"status": "ready", "model_version": version}
    body = request(live.url, "GET", "/version").body
    assert body["model_version"] == version and body["accuracy"] == 0.9 and body["class_names"] == CLASSES
    content = request(live.url, "GET", "/openapi.json").body["paths"]["/score"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/*", "multipart/form-data"}
    page = request(live.url, "GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in page.body


def test_top_k(live: Service) -> None:
    assert len(post(live.url, JPEG, path="/score?top_k=1").body["predictions"]) == 1
    assert post(live.url, JPEG, path="/score?top_k=0").status == 422
    assert post(live.url, JPEG, path="/score?top_k=x").status == 422


def test_every_failure_has_the_same_shape_and_the_request_id(live: Service) -> None:
    for reply in (
        post(live.url, b"hello", "text/plain"),
        post(live.url, JPEG, path="/score?top_k=x"),
        request(live.url, "GET", "/score"),
        request(live.url, "GET", "/nothing"),
        request(live.url, "POST", "/control/follow"),
    ):
        assert 400 <= reply.status < 500
        assert reply.body["error"] and reply.body["reason"]
        assert reply.body["request_id"] == reply.headers["x-request-id"]


def test_a_harmless_request_id_is_kept_and_another_is_not(live: Service) -> None:
    assert post(live.url, JPEG, **{"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert post(live.url, JPEG, **{"X-Request-ID": 'a"\t{}'}).headers["x-request-id"] != 'a"\t{}'


def test_too_much_is_413_before_it_is_read(live: Service) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b"\0" * 65536

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it hangs up while we are still sending
        assert request(live.url, "POST", "/score", endless(), {"Content-Type": "image/jpeg"}).status == 413
    assert sent < 100_000_000
    for body in (b"\0" * 20_000_000, iter([b"\0" * 65536] * 300)):  # who ends gets the answer, and no reset
        assert request(live.url, "POST", "/score", body, {"Content-Type": "image/jpeg"}).status == 413
    with connect(live) as s:
        s.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99999999999\r\n\r\n")
        answer = s.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer.lower()
    assert post(live.url, b"\0" * 1_000_001).status == 413


def test_a_pixel_bomb_is_413(live: Service) -> None:
    bomb = to_bytes(Image.new("L", (4000, 4000)), "PNG")
    assert len(bomb) < 100_000
    assert post(live.url, bomb, "image/png").status == 413


def test_a_content_encoding_is_refused(live: Service) -> None:
    assert post(live.url, JPEG, **{"Content-Encoding": "gzip"}).status == 415


def test_slow_headers_and_slow_bodies_are_hung_up_on(tmp_path: Path, model_dir: Path) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    with running_service(tmp_path, model_dir, "serve.timeout=4") as started:
        begun = time.monotonic()
        with connect(started) as headers, connect(started) as body, connect(started) as silent:
            headers.sendall(head)
            body.sendall(head + b"Content-Length: 5000\r\n\r\nabc")
            assert post(started.url, JPEG).status == 200  # others are served meanwhile
            answers = [read_all(s) for s in (headers, body, silent)]
        assert time.monotonic() - begun > 3.9
    assert all(a.startswith(b"HTTP/1.1 408") for a in answers)
    assert b'"slow"' in answers[1]


def test_a_thousand_mixed_requests_fail_exactly_where_they_should(live: Service) -> None:
    rng = random.Random(0)
    bad = [
        (b"garbage", "image/jpeg"),
        (JPEG[:200], "image/jpeg"),
        (b"{", "application/json"),
        (b'{"data": "%%"}', "application/json"),
        (b"text", "text/plain"),
        (b"", "image/png"),
    ]
    cases: list[tuple[bytes, str, bool]] = []
    for i in range(1000):
        if i % 10 == 3:
            cases.append((*rng.choice(bad), False))
        elif i % 2:
            cases.append((json.dumps({"data": base64.b64encode(JPEG).decode()}).encode(), "application/json", True))
        else:
            cases.append((JPEG, "image/jpeg", True))
    rng.shuffle(cases)
    with ThreadPoolExecutor(8) as pool:
        replies: list[Reply] = list(pool.map(lambda c: post(live.url, c[0], c[1]), cases))
    wrong = [(r.status, good) for r, (_, _, good) in zip(replies, cases, strict=True) if (r.status == 200) != good]
    assert wrong == []
    counts = Counter(r.status for r in replies)
    assert counts[200] == 900 and max(counts) < 500 and sum(counts.values()) == 1000
    assert {r.body["label"] for r in replies if r.status == 200} == {"blue"}


def test_metrics_count_what_happened(live: Service) -> None:
    def value(line: str) -> float:
        text = request(live.url, "GET", "/metrics").body.decode()
        found = [row for row in text.splitlines() if row.startswith(line)]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    before = value('objrec_requests_total{path="/score",status="200"}'), value('objrec_confidence_count{label="blue"}')
    post(live.url, JPEG)
    time.sleep(0.05)  # it is counted after it is answered
    after = value('objrec_requests_total{path="/score",status="200"}'), value('objrec_confidence_count{label="blue"}')
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    assert value("objrec_pending") == 0 and value('objrec_stage_seconds_count{stage="model"}') > 0
    assert value("objrec_model_accuracy") == 0.9


def test_the_log_has_a_json_line_a_request(live: Service, tmp_path_factory: pytest.TempPathFactory) -> None:
    post(live.url, JPEG, **{"X-Request-ID": "look-for-me"})
    log = next(p for p in tmp_path_factory.getbasetemp().glob("registry*/service.log"))
    deadline = time.monotonic() + 60
    while not (lines := [json.loads(r) for r in log.read_text().splitlines() if "look-for-me" in r]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lines[0]["status"] == 200 and lines[0]["label"] == "blue" and lines[0]["bytes"] == len(JPEG)
    assert {"time", "level", "message", "ms", "probability", "model", "client"} <= set(lines[0])


def test_a_client_that_leaves_in_the_middle_is_not_our_failure(
    live: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with connect(live) as s:
        head = "POST /score HTTP/1.1\r\nHost: x\r\nX-Request-ID: left-early\r\nContent-Length: 1000\r\n\r\n"
        s.sendall(head.encode() + JPEG[:100])
        time.sleep(0.1)
    log = next(p for p in tmp_path_factory.getbasetemp().glob("registry*/service.log"))
    deadline = time.monotonic() + 60
    while not (lines := [json.loads(r) for r in log.read_text().splitlines() if "left-early" in r]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [(line["status"], line["error"]) for line in lines] == [(400, "cut_off")]


def test_back_pressure_and_the_key(tmp_path: Path, model_dir: Path) -> None:
    large = to_bytes(image("red", 1, size=(2500, 2500)), "PNG")  # about a tenth of a second to decode
    limits = ("serve.queue=0", "serve.workers=1", "serve.memory=1000000000")
    with running_service(tmp_path, model_dir, *limits, key="geheim") as started:
        refused = post(started.url, JPEG)
        assert refused.status == 401 and refused.headers["www-authenticate"].startswith("Bearer")
        assert post(started.url, JPEG, **{"X-API-Key": "nein"}).status == 401
        assert request(started.url, "GET", "/metrics").status == 401
        assert post(started.url, JPEG, Authorization="Bearer geheim").status == 200
        assert post(started.url, JPEG, Authorization="bEARER  geheim").status == 200
        assert post(started.url, JPEG, Authorization="Basic geheim").status == 401
        assert request(started.url, "GET", "/readyz").status == 200
        head = b"POST /score HTTP/1.1\r\nHost: x\r\nX-API-Key: geheim\r\nContent-Length: %d\r\n\r\n" % len(large)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(started)) for _ in range(6)]
            for s in clients:
                s.sendall(head + large[:-1])
            for s in clients:  # now all at once
                s.sendall(large[-1:])
            answers = [s.recv(65536) for s in clients]
        counts = Counter(int(a.split()[1]) for a in answers)
        assert set(counts) == {200, 429} and counts[200] >= 1
        assert all(b"retry-after: " in a for a in answers if a.startswith(b"HTTP/1.1 429"))
        state = (tmp_path / "service.json").read_text()
        command = Path(f"/proc/{started.pid}/cmdline").read_text()
        assert "geheim" not in state + command + (tmp_path / "service.err").read_text()


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_requests(tmp_path: Path, model_dir: Path) -> None:
    with running_service(tmp_path, model_dir) as started:

        def resident() -> int:
            status = Path(f"/proc/{started.pid}/status").read_text()
            return int(next(r for r in status.splitlines() if r.startswith("VmRSS")).split()[1]) // 1024

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: post(started.url, JPEG), range(1000)))
            before = resident()
            statuses = Counter(pool.map(lambda _: post(started.url, JPEG).status, range(10_000)))
        assert statuses == {200: 10_000}
        assert resident() - before < 20  # MB


def test_addresses_are_fetched_only_when_allowed_and_never_private_ones(
    live: Service, tmp_path: Path, model_dir: Path
) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "sea.jpg").write_bytes(JPEG)
    serve = functools.partial(Quiet, directory=str(tmp_path / "files"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"

    def ask(url: str, address: str) -> Reply:
        return post(url, json.dumps({"url": address}).encode(), "application/json")

    try:
        assert ask(live.url, f"{base}/sea.jpg").body["error"] == "no_urls"
        with running_service(tmp_path / "guarded", model_dir, "serve.allow_urls=true") as started:
            for address in (f"{base}/sea.jpg", "file:///etc/passwd", "http://169.254.169.254/", "no address"):
                reply = ask(started.url, address)
                assert reply.status == 422 and reply.body["error"] == "not_fetched"
            assert post(started.url, JPEG).status == 200
        allowed = ("serve.allow_urls=true", "ingest.allow_private_addresses=true")
        with running_service(tmp_path / "open", model_dir, *allowed) as started:
            assert ask(started.url, f"{base}/sea.jpg").body["label"] == "blue"
            assert ask(started.url, f"{base}/none.jpg").body["error"] == "not_fetched"
    finally:
        server.shutdown()
        server.server_close()
