"""Endpoints and addresses that answer slowly, endlessly or nonsense, and those that are none."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objrec import predict
from objrec.client import endpoint as client
from objrec.config.errors import UserError

GOOD = {"label": "a", "probability": 1.0, "predictions": [{"label": "a", "probability": 1.0}], "model_version": "v"}


@contextlib.contextmanager
def saying(pieces: Iterable[bytes], pause: float = 0.0) -> Iterator[str]:
    """A server that says the same to everybody, piece by piece. Images are ``x``."""
    pieces = list(itertools.islice(pieces, 100_000))
    listening = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            heard = b""
            while not heard.endswith(b"\r\n\r\nx" if heard.startswith(b"POST") else b"\r\n\r\n"):
                heard += connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=[listening.accept()[0]], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def whole(body: bytes, *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


ENDLESS = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *[bytes(10_000)] * 1000]
CHUNKED = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"FFFFFFFFFFFFFF\r\n", *[bytes(10_000)] * 1000]
CLAIMED = [b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n", *[bytes(10_000)] * 1000]
MOVED = [b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 99999999999999999\r\n\r\n", *[bytes(10_000)] * 1000]


SLOW = r"no whole answer in|timed out"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MAX_ANSWER": 100_000, "DEADLINE": 0.5, "TRIES": 2}.items():
        monkeypatch.setattr(client, name, value)


# --- how much, and how long


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pieces", [ENDLESS, CHUNKED, CLAIMED], ids=["endless", "chunked", "claimed"])
def test_more_than_the_limit_is_not_read(pieces: list[bytes], small: None) -> None:
    with saying(pieces) as url:
        with pytest.raises(UserError, match="does not answer: larger than 100000 bytes"):
            client.EndpointClient(url).classify(b"x")
        with pytest.raises(OSError, match="larger than 100000 bytes"):
            client.download(url, max_bytes=100_000)


@pytest.mark.timeout(30)
def test_the_body_of_a_redirection_is_bounded(small: None) -> None:
    with saying(MOVED) as url, pytest.raises(OSError, match="redirect"):
        client.download(url, max_bytes=100_000)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "pieces",
    [[b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 90], [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x"] * 90]],
    ids=["head", "body"],
)
def test_drips_end_at_the_deadline(pieces: list[bytes], small: None) -> None:
    with saying(pieces, pause=0.1) as url:
        began = time.monotonic()
        with pytest.raises(UserError, match=SLOW):
            client.EndpointClient(url).classify(b"x")
        assert time.monotonic() - began < 3  # two tries of half a second
        with pytest.raises(OSError, match=SLOW):
            client.download(url, max_bytes=100_000)


def test_an_answer_cut_short_is_an_error(small: None) -> None:
    with saying([whole(bytes(1000))[:-10]]) as url:
        with pytest.raises(UserError, match="does not answer: IncompleteRead"):
            client.EndpointClient(url).classify(b"x")
        with pytest.raises(OSError, match="IncompleteRead"):
            client.download(url, max_bytes=100_000)


def test_an_address_cannot_lead_to_another_protocol() -> None:
    for place in ("ftp://127.0.0.1:1/x.jpg", "file:///etc/hostname"):
        with saying([whole(b"", f"Location: {place}", status=302)]) as url, pytest.raises(OSError):
            client.download(url, max_bytes=100_000)


# --- nonsense


def answer(**changed: Any) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"null",
        answer(predictions=[]),
        answer(predictions={}),
        answer(predictions="abc"),
        answer(predictions=[None]),
        *(answer(predictions=[{"label": "a", "probability": p}]) for p in ("high", None, True, -1, 1.5, 10**400, [1])),
        answer(predictions=[{"label": "a", "probability": float("nan")}]),
        answer(predictions=[{"label": {"x": 1}, "probability": 1.0}]),
        answer(label={"x": 1}),
        answer(model_version=None),
        b'{"reason": {"x": 1}}',
        b'{"reason": "two\\nlines \\u001b[31m"}',
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]], ids=["text", "json", "csv"])
def test_nonsense_is_told_in_a_line(
    body: bytes, form: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.jpg").write_bytes(b"x")
    with saying([whole(body)]) as url:
        assert predict.main(["a.jpg", "--endpoint", url, *form]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {url} does not answer as an endpoint does: ") and said.count("\n") == 1
    assert "check the address" in said and "\x1b" not in said


def test_a_good_answer_is_taken() -> None:
    with saying([whole(answer())]) as url:
        assert client.EndpointClient(url).classify(b"x") == ([("a", 1.0)], "v", False)
    with saying([whole(answer(label=None))]) as url:
        assert client.EndpointClient(f"{url}/é x").classify(b"x")[2]


@pytest.mark.parametrize("after", ["²", "-1", "soon", "9" * 400])
def test_odd_waits_are_not_taken_literally(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client.time, "sleep", waited.append)
    monkeypatch.setattr(client, "TRIES", 2)
    endless = [whole(b"{}", f"Retry-After: {after}", status=503)]
    with saying(endless) as url, pytest.raises(UserError, match="status 503"):
        client.EndpointClient(url).classify(b"x")
    assert [seconds for seconds in waited if seconds] == [10.0 if after.startswith("9") else 1.0]


# --- what cannot be asked


@pytest.mark.parametrize(
    "url",
    [
        "http://a b:80",
        f"http://{'a' * 70}.example",
        "http://a..b",
        "http://[::1",
        "http://[zz]/",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://127.0.0.1/\udcff",
        "ftp://127.0.0.1",
        "\x1b[31m",
    ],
)
def test_an_address_that_is_none(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([__file__, "--endpoint", url]) == 2
    said = capsys.readouterr().err
    assert "should be an address like http://" in said and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize("key", ["€", "é", "abc\n", "a\0b"])
def test_a_key_that_no_header_carries(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main([__file__, "--endpoint", "http://127.0.0.1:9", "--key", key]) == 2
    said = capsys.readouterr().err
    assert "OBJREC_KEY" in said and "printable ASCII" in said and key not in said


@pytest.mark.parametrize("url", ["http://[::1", "http://a b/", f"http://{'a' * 70}/", "http://127.0.0.1:9/é"])
def test_an_address_of_an_image_that_is_none(url: str) -> None:
    with pytest.raises(OSError):
        client.download(url, max_bytes=100_000)
