"""Memory under requests that want much of it, beside a client that wants little."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.serving import connect, image, make_model, post, running_service, to_bytes
from PIL import Image

from objrec.deployment.service import Service
from objrec.inference.predictor import Predictor
from objrec.serving.memory import AUTO, MEBIBYTE, RequestMemory
from objrec.serving.request import RequestError, Upload

JPEG = to_bytes(image("blue", 1))
LARGEST = 20_000_000
MARGIN = 40 * MEBIBYTE  # what connections and the allocator hold


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def live(model: Path, tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, model) as started:
        for _ in range(50):
            assert post(started.url, JPEG).status == 200
        yield started


def resident(live: Service, kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+)", Path(f"/proc/{live.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@contextlib.contextmanager
def beside_a_normal_client(live: Service) -> Iterator[None]:
    """Five requests a second, all answered, and no more memory than ``serve.memory`` above the quiet level."""
    stop, replies = threading.Event(), Counter[int]()

    def ask() -> None:
        while not stop.wait(0.2):
            replies[post(live.url, JPEG).status] += 1

    Path(f"/proc/{live.pid}/clear_refs").write_text("5")  # forget the peak so far
    quiet = resident(live, "VmRSS")
    client = threading.Thread(target=ask)
    client.start()
    try:
        yield
    finally:
        stop.set()
        client.join()
    assert not set(replies) - {200}
    above = resident(live, "VmHWM") - quiet
    assert above < AUTO + MARGIN


def at_once(count: int, do: Callable[[int], Any]) -> Counter[Any]:
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(do, range(count)))


def plain_png(megapixels: int, kind: Any = np.uint8, *colours: int) -> bytes:
    side = int((megapixels * 1e6) ** 0.5)
    return to_bytes(Image.fromarray(np.zeros((side, side, *colours), kind)), "PNG")


def test_images_that_are_small_as_files_and_enormous_in_memory(live: Service) -> None:
    for data in (plain_png(49, np.uint16), plain_png(49, np.uint8, 3)):
        with beside_a_normal_client(live):
            found = at_once(24, lambda _: post(live.url, data, "image/png").status)  # noqa: B023
        assert found == {413: 24}


def test_many_images_of_the_largest_size_that_fits(live: Service) -> None:
    data = plain_png(9, np.uint8, 3)
    with beside_a_normal_client(live):
        found = at_once(24, lambda _: post(live.url, data, "image/png").status)
    assert found[200] and set(found) <= {200, 429, 503}


@pytest.mark.parametrize("kind", ["raw", "json", pytest.param("chunked", marks=pytest.mark.slow)])
def test_many_bodies_of_the_largest_size(live: Service, kind: str) -> None:
    data: Any = JPEG + bytes(LARGEST - len(JPEG))
    if kind == "json":
        data = json.dumps({"data": base64.b64encode(data).decode()}).encode()
    pieces = [data[i : i + 65536] for i in range(0, len(data), 65536)]

    def send(_: int) -> int | None:
        try:
            return post(
                live.url,
                iter(pieces) if kind == "chunked" else data,
                "application/json" if kind == "json" else "image/jpeg",
            ).status
        except OSError:  # a server that has answered and closed, while we were still sending
            return None

    with beside_a_normal_client(live):
        found = at_once(64, send)
    assert found[200] and set(found) <= {200, 408, 429, 503, None}


def test_slow_large_bodies_keep_no_small_one_out(live: Service) -> None:
    with beside_a_normal_client(live), contextlib.ExitStack() as stack:
        for _ in range(64):
            s = stack.enter_context(connect(live))
            s.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGEST + bytes(100_000))
        larger = to_bytes(image("blue", 1, size=(900, 700)))
        assert len(larger) > 65536 and post(live.url, larger).status == 200


@pytest.mark.parametrize("huge", [True, False])
def test_heads_that_are_huge_or_slow(live: Service, huge: bool) -> None:
    def send(_: int) -> None:
        with connect(live) as s, contextlib.suppress(OSError):
            s.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(100):
                s.sendall(b"a" * (200_000 if huge else 10))
                time.sleep(0 if huge else 0.02)
            s.shutdown(socket.SHUT_WR)

    with beside_a_normal_client(live):
        at_once(32, send)


# --- without a server


def test_what_does_not_fit_waits_or_is_refused(model: Path) -> None:
    memory, predictor = RequestMemory(48 * MEBIBYTE, max_body=LARGEST), Predictor.load(model)
    upload = Upload(plain_png(2, np.uint8, 3))
    cost = memory.cost(upload, predictor)
    now = time.monotonic()
    assert memory.pixels(upload, predictor, cost, now + 60).shape == (32, 32, 3) and memory.used == 0
    with memory.decoding.take(memory.decoding.size), pytest.raises(RequestError, match="429 memory"):
        memory.pixels(upload, predictor, cost, time.monotonic() + 0.05)
    with pytest.raises(RequestError, match=r"413 too_large.*serve\.memory"):
        memory.cost(Upload(plain_png(12, np.uint8, 3)), predictor)
    with pytest.raises(RequestError, match="503 timeout"):  # not begun
        memory.pixels(upload, predictor, cost, now - 1)
    assert memory.used == 0
