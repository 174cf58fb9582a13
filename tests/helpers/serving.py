"""A model folder, test images and a registry in a second, without training and without torch."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from objrec.config.load import load_config
from objrec.deployment import service
from objrec.deployment.service import Service
from objrec.images.raw import write_hashes
from objrec.model_registry.records import Record
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import TRAINED_ON, ModelCard, file_sha256
from objrec.serving.settings import ServiceSettings

CLASSES = ["red", "green", "blue"]
SIZE = 32


def make_model(
    folder: Path,
    *,
    seed: int = 0,
    training_data: str = "data-1",
    classes: list[str] = CLASSES,
    mirrored: bool = False,
    nan: bool = False,
    always: str | None = None,
    split: str | None = None,
    trained_on: Sequence[str] | None = None,
    **more: Any,
) -> Path:
    """Write a small convolutional network that knows red, green and blue; ``mirrored`` makes it wrong on purpose.

    With ``always`` it says this class of every image. ``split`` and ``trained_on`` are what a model folder knows of
    the raw images behind it; those of older versions know nothing. ``more`` goes into its card.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    n = len(classes)
    conv = random.normal(0, 0.01, (8, 3, 3, 3)).astype(np.float32)
    for channel in range(3):
        conv[channel, channel, 1, 1] = 1.0
    gemm = random.normal(0, 0.01, (n, 8)).astype(np.float32)
    for i in range(n):
        gemm[i, (i + 1 if mirrored else i) % 3] += 2.0
    bias = np.full(n, np.nan if nan else 0.0, np.float32)
    if always is not None:
        bias[classes.index(always)] = 100.0
    weights = {"conv": conv, "gemm": gemm, "bias": bias}
    nodes = [
        helper.make_node("Conv", ["pixels", "conv"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "gemm", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", n])],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    save_file(weights, folder / "model.safetensors")
    names = ["model.safetensors", "model.onnx"]
    if trained_on is not None:
        write_hashes(folder / TRAINED_ON, trained_on)
        names.append(TRAINED_ON)
    card = ModelCard(
        backbone={"name": "tiny"},
        class_names=classes,
        input_size=SIZE,
        mean=[0.5, 0.5, 0.5],
        std=[0.25, 0.25, 0.25],
        interpolation="bilinear",
        training_data_fingerprint=training_data,
        metrics={"val/acc": 0.9},
        git_commit=None,
        versions={},
        files={name: file_sha256(folder / name) for name in names},
        split_fingerprint=split,
        **more,
    )
    card.save(folder)
    return folder


def image(label: str, seed: int, *, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy image whose mean colour is the label's."""
    random = np.random.default_rng([seed, CLASSES.index(label)])
    noise = random.integers(0, 120, (size[1], size[0], 3))
    noise[:, :, CLASSES.index(label)] += 110
    return Image.fromarray(noise.astype(np.uint8))


def make_images(folder: Path, *, per_class: int = 8, first: int = 0) -> Path:
    """Write ``<class>/<n>.jpg`` for each class."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + per_class):
            image(label, i).save(folder / label / f"{i:04}.jpg", quality=90)
    return folder


def make_accuracy(path: Path, model_dir: Path, accuracy: Any, *, test_data: str = "test-1", **more: Any) -> Path:
    """Write an accuracy file for a model."""
    content = {
        "accuracy": accuracy,
        "num_images": 24,
        "confidence_interval": [0.8, 1.0],
        "test_data_fingerprint": test_data,
        "model_sha256": ModelCard.load(model_dir).sha256,
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def to_bytes(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


FAST = ("serve.runtime=onnxruntime", "serve.precision=fp32")  # one candidate: nothing to measure at deployment


def put_in_registry(root: Path, model_dir: Path, accuracy: float = 0.9) -> Record:
    """Register a model without trying it."""
    card = ModelCard.load(model_dir)
    record = Record(
        sha256=card.sha256,
        training_data_fingerprint=card.training_data_fingerprint,
        accuracy=accuracy,
        test_data_fingerprint="test-1",
        num_images=24,
    )
    FolderRegistry(root).add(model_dir, record)
    return record


@contextlib.contextmanager
def running_service(root: Path, model_dir: Path, *overrides: str, key: str | None = None) -> Iterator[Service]:
    """A background service with a model in production; clients must send ``key`` where it is given."""
    if key is not None:
        keys = root.with_name(f"{root.name}-keys.txt")  # the registry is a folder of objrec's own
        keys.parent.mkdir(parents=True, exist_ok=True)
        keys.write_text(f"{key}\n")
        overrides = (*overrides, f"serve.key_file={keys}")
    FolderRegistry(root).promote(put_in_registry(root, model_dir))
    config = load_config([*FAST, *overrides])
    started = service.ensure_started(ServiceSettings.of(config, registry_dir=str(root.resolve())))
    try:
        yield started
    finally:
        service.stop(root)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


def request(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, timeout: float = 30
) -> Reply:
    """Make one request on a connection of its own. ``body`` may be bytes, or an iterable that is sent in chunks."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {}, encode_chunked=not isinstance(body, (bytes, type(None))))
        return reply_of(connection.getresponse())
    finally:
        connection.close()


def reply_of(response: http.client.HTTPResponse) -> Reply:
    content = response.read()
    headers = {k.lower(): v for k, v in response.getheaders()}
    is_json = content and headers.get("content-type", "").startswith("application/json")
    return Reply(response.status, headers, json.loads(content) if is_json else content)


def post(url: str, data: bytes, kind: str = "image/jpeg", path: str = "/score", **headers: str) -> Reply:
    return request(url, "POST", path, data, {"Content-Type": kind, **headers})


def connect(service: Service, *, timeout: float = 30) -> socket.socket:
    """Open a connection to write bytes of one's own choice to."""
    parts = urlsplit(service.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=timeout)


def read_all(s: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    answer = b""
    while piece := s.recv(65536):
        answer += piece
    return answer


class Load:
    """Clients that post images without pause, on kept connections, until told to stop."""

    def __init__(self, url: str, data: bytes, *, clients: int = 4) -> None:
        self.url, self.data = url, data
        self.statuses: Counter[int] = Counter()
        self.versions: list[str] = []
        self.failures: list[str] = []
        self.refused = 0  # connections that could not be made: nothing was lost by them
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, more: int) -> None:
        """Return when that many more requests were answered."""
        wanted = sum(self.statuses.values()) + more
        deadline = time.monotonic() + 30
        while sum(self.statuses.values()) < wanted and time.monotonic() < deadline and not self.refused:
            time.sleep(0.005)

    def _work(self) -> None:
        parts = urlsplit(self.url)
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    self.refused += 1
                    time.sleep(0.02)
                    connection = None
                    continue
            try:
                connection.request("POST", "/score", self.data, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                reply = reply_of(response)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                connection = None
                continue
            self.statuses[reply.status] += 1
            if reply.status == 200:
                self.versions.append(reply.body["model_version"])
            if response.will_close or reply.headers.get("connection") == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()
