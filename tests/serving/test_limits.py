"""What a request may take before the application sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from helpers.serving import connect, image, make_model, post, read_all, request, running_service, to_bytes

from objrec.deployment.service import Service

JPEG = to_bytes(image("blue", 1))
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ONE_CHUNK = b"%x\r\n%s\r\n" % (len(JPEG), JPEG)
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("limits")
    with running_service(root, make_model(tmp_path_factory.mktemp("model")), "serve.timeout=3") as started:
        yield started


def send(live: Service, data: bytes) -> tuple[int, dict[str, str]]:
    """Send on a connection of its own; return status and JSON body of the one answer."""
    with connect(live) as s:
        s.sendall(data)
        head, _, body = read_all(s).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


CLOSE = b"Connection: close\r\n\r\n"
TOO_MUCH = {
    "a long header": (GET + b"X-Long: " + b"a" * MEGABYTE + b"\r\n" + CLOSE, 431),
    "a long header in one read": (GET + b"X-Long: " + b"a" * 70_000 + b"\r\n" + CLOSE, 431),
    "a header without end": (GET + b"X-Long: " + b"a" * 400_000, 431),
    "a name without end": (GET + b"X" * 400_000, 431),
    "many headers": (GET + b"X: y\r\n" * 10_000 + CLOSE, 431),
    "a hundred and one headers": (GET + b"X: y\r\n" * 100 + CLOSE, 431),
    "a long target": (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE, 414),
    "a target without end": (b"GET /" + b"a" * 400_000, 414),
    "a long query": (b"GET /livez?" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n" + CLOSE, 414),
    "trailers": (CHUNKED + ONE_CHUNK + b"0\r\nX: " + b"a" * MEGABYTE + b"\r\n\r\n", 431),
    "many trailers": (CHUNKED + ONE_CHUNK + b"0\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    "a chunk extension": (CHUNKED + b"1;" + b"a" * MEGABYTE + b"\r\nx\r\n0\r\n\r\n", 431),
    "many chunk extensions": (CHUNKED + (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 1000 + b"0\r\n\r\n", 431),
    "no host": (b"GET /livez HTTP/1.1\r\n" + CLOSE, 400),
    "two hosts": (GET + b"Host: y\r\n" + CLOSE, 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_is_collected_before_the_application_sees_it_is_limited(live: Service, case: str) -> None:
    data, expected = TOO_MUCH[case]
    status, problem = send(live, data)
    assert status == expected and set(problem) == {"error", "reason"}
    assert post(live.url, JPEG).status == 200


def test_what_fits_the_limits_is_answered(live: Service) -> None:
    for more in (b"X-Long: " + b"a" * 60_000 + b"\r\n", b"X: y\r\n" * 98, b""):
        assert send(live, GET + more + CLOSE)[0] == 200
    assert send(live, b"GET /livez HTTP/1.0\r\n\r\n")[0] == 200  # which knows no Host
    whole = CHUNKED.replace(b"\r\n\r\n", b"\r\n" + CLOSE)
    assert send(live, whole + ONE_CHUNK + b"0\r\nX-Checksum: 1\r\n\r\n")[0] == 200
    tiny = b"".join(b"1\r\n%c\r\n" % byte for byte in to_bytes(image("blue", 1, size=(400, 300))))
    assert send(live, whole + tiny + b"0\r\n\r\n")[0] == 200  # each chunk takes six times its content


def test_a_large_body_before_the_next_head_does_not_count_for_it(live: Service) -> None:
    large = POST + b"Content-Length: %d\r\n\r\n" % MEGABYTE + JPEG + bytes(MEGABYTE - len(JPEG))
    with connect(live) as s:
        for _ in range(4):
            s.sendall(large + GET)
            assert b" 200 " in s.recv(65536).partition(b"\r\n")[0]
            s.sendall(b"\r\n")
            answer = b""
            while b"alive" not in answer:
                piece = s.recv(65536)
                assert piece
                answer += piece


def test_a_trailer_is_no_header(live: Service) -> None:
    with connect(live) as s:
        s.sendall(CHUNKED + ONE_CHUNK[:-2] + b"\r\n0\r\nX-Request-ID: from-a-trailer\r\n\r\n")
        assert b"from-a-trailer" not in s.recv(65536)


def test_line_breaks_without_end_before_a_request_are_cut_off(live: Service) -> None:
    with connect(live) as s, pytest.raises(OSError):
        for _ in range(1000):
            s.sendall(b"\r\n" * 50_000)


def test_head_is_answered_wherever_get_is(live: Service) -> None:
    for path in ("/", "/livez", "/readyz", "/version", "/metrics", "/docs", "/openapi.json"):
        asked, got = request(live.url, "HEAD", path), request(live.url, "GET", path)
        assert asked.status == got.status == 200 and asked.headers["content-type"] == got.headers["content-type"]
        assert int(asked.headers["content-length"]) > 0
    reply = request(live.url, "HEAD", "/score")
    assert reply.status == 405
