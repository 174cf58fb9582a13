"""Connections of clients that are slow, early, odd or too many, byte by byte."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.serving import (
    FAST,
    connect,
    image,
    make_model,
    post,
    put_in_registry,
    read_all,
    request,
    running_service,
    to_bytes,
)

from objrec.client.endpoint import TRIES, EndpointClient
from objrec.config.errors import UserError
from objrec.deployment import service
from objrec.deployment.service import Service
from objrec.images.decode import ImageError
from objrec.model_registry.store import FolderRegistry
from objrec.serving import logs
from objrec.serving.http_protocol import Protocol

JPEG = to_bytes(image("blue", 1))
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("connections")
    model_dir = make_model(tmp_path_factory.mktemp("model"))
    with running_service(root, model_dir, "serve.timeout=3", "serve.max_bytes=1000000") as started:
        yield started


@pytest.fixture(scope="module")
def log(live: Service, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next(tmp_path_factory.getbasetemp().glob("connections*/service.log"))


def post_of(body: bytes, headers: bytes = b"") -> bytes:
    return b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


def chunked(body: bytes, size: int, headers: bytes = b"") -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    rows = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%s\r\n%s0\r\n\r\n" % (headers, rows)


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def answer_of(s: socket.socket) -> bytes:
    """Return one answer with its JSON body."""
    answer = b""
    while not answer.endswith(b"}"):
        piece = s.recv(65536)
        assert piece, answer
        answer += piece
    return answer


# --- who stays and says nothing


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        (post_of(JPEG), b"\r\n", 200),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n", b"a", 404),
        (b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 100\r\n\r\n", b"a", 415),
    ],
    ids=["a line break", "the rest of a body", "the rest of an image"],
)
def test_bytes_that_begin_no_request_hold_no_connection(live: Service, first: bytes, more: bytes, status: int) -> None:
    with connect(live) as s:
        s.sendall(first)
        assert statuses(answer_of(s)) == [status]
        s.sendall(more)
        assert read_all(s) == b""


def test_a_second_head_may_not_be_slow_either(live: Service) -> None:
    with connect(live) as s:
        s.sendall(post_of(JPEG))
        assert statuses(answer_of(s)) == [200]
        s.sendall(b"POST /score HT")
        assert statuses(read_all(s)) == [408]


def test_a_long_upload_that_was_answered_early_may_end(live: Service) -> None:
    with connect(live) as s:
        s.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
        for _ in range(10):  # five seconds; serve.timeout is three
            s.sendall(b"\0" * 5000)
            time.sleep(0.5)
        assert statuses(answer_of(s)) == [404]
        time.sleep(3.5)  # idle, as after any answer
        s.sendall(post_of(JPEG))
        assert statuses(answer_of(s)) == [200]


def test_what_follows_an_early_answer_is_the_next_request(live: Service) -> None:
    with connect(live) as s:
        s.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert statuses(answer_of(s)) == [404]
        s.sendall(b"abc")
        time.sleep(0.1)
        s.sendall(post_of(JPEG))
        assert statuses(answer_of(s)) == [200]


# --- who is answered before he has sent all


def test_a_client_learns_that_its_image_is_too_large_from_one_upload(live: Service, tmp_path: Path) -> None:
    def told() -> float:
        rows = request(live.url, "GET", "/metrics").body.decode().splitlines()
        name = 'objrec_requests_total{path="/score",status="413"}'
        return next((float(r.split()[-1]) for r in rows if r.startswith(name)), 0.0)

    before = told()
    endpoint = EndpointClient(live.url)
    for count in (1, 2):
        with pytest.raises(ImageError, match="larger than 1000000 bytes"):
            endpoint.classify(JPEG + b"\0" * 8_000_000)
        assert told() == before + count
    assert endpoint.classify(JPEG)[0][0][0] == "blue"


def test_a_server_that_resets_every_connection_is_said_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reset() -> None:
            for _ in range(TRIES):
                s, _ = listener.accept()
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.close()

        thread = threading.Thread(target=reset)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"  # broken in the middle of its handshake
        with pytest.raises(UserError, match="does not answer"):
            EndpointClient(url).classify(JPEG)
        thread.join()


def test_a_client_that_goes_on_sending_is_left(live: Service) -> None:
    with connect(live) as s:
        s.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert statuses(answer_of(s)) == [413]
        assert s.recv(1) == b""  # it has closed its side, and bears what comes for a while
        began = time.monotonic()
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while time.monotonic() - began < 60:
                s.sendall(b"\0")
                time.sleep(0.1)
        assert time.monotonic() - began > 1


def test_what_is_no_http_is_told_so_and_is_no_error_of_ours(live: Service, log: Path) -> None:
    with connect(live) as s:
        s.sendall(post_of(JPEG, b"X-Request-ID: before-it\r\n") + b"GET /x HTTP/1.1\r\nHo st: x\r\n\r\n")
        assert statuses(read_all(s))[-1] == 400
    with connect(live) as s:  # an error of the body, while the request is read
        s.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n")
        assert statuses(read_all(s)) == [400]
    post(live.url, JPEG, **{"X-Request-ID": "after-both"})
    deadline = time.monotonic() + 60
    while "after-both" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert '"level": "error"' not in log.read_text()


# --- who wishes for another protocol


@pytest.mark.parametrize("cut", [0, 40, -len(JPEG) - 1, -len(JPEG), -len(JPEG) + 1, -1])
@pytest.mark.parametrize("made", [post_of(JPEG, UPGRADE), chunked(JPEG, 500, UPGRADE)], ids=["length", "chunks"])
def test_a_wish_for_another_protocol_is_ignored_and_the_body_read(live: Service, made: bytes, cut: int) -> None:
    with connect(live) as s:
        s.sendall(made[:cut])
        time.sleep(0.05)
        s.sendall(made[cut:])
        answer = read_all(s)
    assert statuses(answer) == [200] and b'"label": "blue"' in answer


def test_the_body_of_such_a_request_is_not_taken_for_a_request(live: Service) -> None:
    inner = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(live) as s:
        s.sendall(post_of(inner, UPGRADE) + inner)
        answer = read_all(s)
    assert statuses(answer) == [415] and b"model_version" not in answer


def test_what_is_sent_behind_such_a_request_is_not_read(live: Service) -> None:
    with connect(live) as s:
        s.sendall(post_of(json.dumps({"data": base64.b64encode(JPEG).decode()}).encode(), UPGRADE) + post_of(b"{}"))
        answer = read_all(s)
    assert statuses(answer) == [200] and b'"label": "blue"' in answer


def test_without_a_body_it_is_a_plain_request(live: Service) -> None:
    with connect(live) as s:
        s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"\r\n")
        assert statuses(read_all(s)) == [200]


# --- who closes his side, and who sends crumbs


def test_a_client_that_closed_its_side_gets_its_answers(live: Service) -> None:
    with connect(live) as s:
        s.sendall(post_of(JPEG) * 3)
        s.shutdown(socket.SHUT_WR)
        assert statuses(read_all(s)) == [200, 200, 200]
    with connect(live) as s:
        s.sendall(post_of(JPEG)[:-1])
        s.shutdown(socket.SHUT_WR)
        assert statuses(read_all(s)) == []


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_a_body_of_many_pieces(live: Service, size: int) -> None:
    with connect(live) as s:
        s.sendall(chunked(JPEG, size) * 2)
        s.shutdown(socket.SHUT_WR)
        assert statuses(read_all(s)) == [200, 200]


def test_pieces_are_added_to_a_buffer_that_grows_in_place() -> None:
    """As bytes, each would cost a copy of all before it."""
    cycle = SimpleNamespace(body=bytearray(), response_complete=False, message_event=SimpleNamespace(set=lambda: None))
    connection = SimpleNamespace(cycle=cycle, parser=SimpleNamespace(should_upgrade=lambda: False))
    connection.flow = SimpleNamespace(pause_reading=lambda: None)
    arriving: Any = OnlyBodies(connection)
    arriving._unread = True
    for piece in (b"one", b"two", b"three"):
        Protocol.on_body(arriving, piece)
    assert cycle.body == b"onetwothree" and isinstance(cycle.body, bytearray)


class OnlyBodies(Protocol):
    def __init__(self, connection: SimpleNamespace) -> None:
        vars(self).update(vars(connection))


def test_who_is_owed_nothing_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = tmp_path / "registry"
    patience = tmp_path / "sitecustomize.py"  # an hour: no machine is so slow that waiting for it looks like no waiting
    patience.write_text("from objrec.serving import http_protocol\nhttp_protocol.LINGER_SECONDS = 3600.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with running_service(registry, make_model(tmp_path / "m"), "serve.grace=0.1", "serve.drain=3600") as started:
        with contextlib.ExitStack() as stack:
            for first in (b"GET /liv", b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"):
                s = stack.enter_context(connect(started))
                s.sendall(first)
                time.sleep(0.2)
            began = time.monotonic()
            started.process.signal(signal.SIGTERM)
            while started.process.alive():
                assert time.monotonic() - began < 60
                time.sleep(0.02)
        assert '"level": "error"' not in service.log_file(registry).read_text()


# --- too many, and no room


def test_file_descriptors_run_short_and_come_back(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    FolderRegistry(registry).promote(put_in_registry(registry, make_model(tmp_path / "m")))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "from objrec.serve import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "action=start", f"registry_dir={registry}", *FAST]
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": root}, timeout=120)
    started = service.find(registry)
    assert started is not None
    try:
        with connect(started) as kept, contextlib.ExitStack() as crowd:
            kept.sendall(post_of(JPEG))
            assert statuses(answer_of(kept)) == [200]
            for _ in range(400):
                crowd.enter_context(connect(started))
            time.sleep(0.5)
            with connect(started) as s:
                assert s.recv(1) == b""  # not even listened to
            kept.sendall(post_of(JPEG))
            assert statuses(kept.recv(65536)) == [503]  # too many
        deadline = time.monotonic() + 60
        while post(started.url, JPEG, **{"X-Request-ID": "after-it"}).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        while "after-it" not in service.log_file(registry).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "Traceback" not in (registry / "service.err").read_text()
    finally:
        service.stop(registry)


def test_log_lines_wait_until_they_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.02)
    monkeypatch.setattr(logs, "MAX_LINES", 5)
    path = tmp_path / "service.log"
    handler = logs.FileHandler(path)
    handler.setFormatter(logs.JsonFormatter())

    def say(text: str, level: int = logging.INFO) -> None:
        handler.handle(logging.LogRecord("x", level, __file__, 1, text, None, None))

    path.mkdir()  # cannot be written to
    for i in range(8):
        say(f"line {i}", logging.ERROR)  # at once: raises nothing
    path.rmdir()
    say("\ud800 after")
    deadline = time.monotonic() + 60
    while not path.is_file() or "after" not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    said = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert said == ["line 3", "line 4", "line 5", "line 6", "line 7", "\ud800 after"]


def test_a_state_file_that_cannot_be_read_just_now_names_it_still(tmp_path: Path) -> None:
    assert not service.is_named(tmp_path, "me")
    assert not service.is_named(tmp_path / "gone", "me")
    found = Service(pid=1, started="x", url="http://x:80", instance="me", token="", settings="")
    service.write_state(tmp_path, found)
    assert service.is_named(tmp_path, "me") and not service.is_named(tmp_path, "another")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = os.open(os.devnull, os.O_RDONLY)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))  # the next file would be one too many
    try:
        named = service.is_named(tmp_path, "me")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert named
    service.state_file(tmp_path).write_text("{")
    assert not service.is_named(tmp_path, "me")


def test_a_line_that_was_cut_off_by_a_full_disk_is_taken_back(tmp_path: Path) -> None:
    handler = logs.FileHandler(tmp_path / "service.log")
    handler.setFormatter(logs.JsonFormatter())

    def say(text: str) -> None:
        handler.handle(logging.LogRecord("x", logging.ERROR, __file__, 1, text, None, None))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it; the error is what counts
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # room for some lines, and a part of one
    try:
        for i in range(10):
            say(f"line {i}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    say("the disk has room again")
    said = [json.loads(line)["message"] for line in (tmp_path / "service.log").read_text().splitlines()]
    assert said == [*(f"line {i}" for i in range(10)), "the disk has room again"]
