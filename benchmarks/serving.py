"""How fast is the endpoint? Whole path over HTTP, beside decode plus model alone and beside LitServe, interleaved.

    python benchmarks/serving.py [--litserve PYTHON] [--model DIR] [--image FILE] [--rounds 5] [--seconds 1]

PYTHON is an interpreter that has litserve and this project's dependencies; without it the peer is left out. Every
contender is started first and idles while another is measured; each round measures all of them in turn, so that a
change of the machine's speed meets all alike. The figures are medians over the rounds. Without --model a ResNet-18
with random weights at 224 px is used: speed does not depend on what the weights are, and the accuracy of int8 is not
at stake here (tests and deployment measure it).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import io
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = 8
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--litserve", metavar="PYTHON")
    p.add_argument("--model", type=Path)
    p.add_argument("--image", type=Path)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=1.0)
    p.add_argument(
        "--configurations", default="onnxruntime:fp32,openvino:fp32,openvino:bf16,onnxruntime:int8,openvino:int8"
    )
    p.add_argument("--json", type=Path, help="write the figures here too")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        image = options.image.read_bytes() if options.image else draw_image(100_000)
        model = options.model or make_model(Path(scratch) / "model")
        contenders: dict[str, Contender] = {}
        for name in options.configurations.split(","):
            runtime, precision = name.split(":")
            with contextlib.suppress(ModuleNotFoundError):
                contenders[f"objrec {runtime} {precision}"] = stack.enter_context(
                    ours(Path(scratch), model, image, runtime, precision)
                )
        if options.litserve:
            for batch, workers in ((8, 1), (1, CORES)):
                name = f"LitServe eager, batch {batch}, {workers} worker{'s' * (workers > 1)}"
                contenders[name] = stack.enter_context(litserve(options.litserve, model, image, batch, workers))
        figures = measure(contenders, rounds=options.rounds, seconds=options.seconds)
    report(figures, len(image))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


class Contender:
    """A server's address and its request; ``alone`` is decode plus model without it, where that can be measured.

    It is measured with each number of ``threads``; the table has as many as cores, and the best of them.
    """

    def __init__(
        self,
        port: int,
        image: bytes,
        alone: Callable[[], Any] | None = None,
        pid: int = 0,
        threads: tuple[int, ...] = (),
    ) -> None:
        self.port, self.image, self.alone, self.pid, self.threads = port, image, alone, pid, threads
        self.request = post_request(port, image, as_base64=False)

    def as_base64(self) -> Contender:
        other = copy.copy(self)
        other.request = post_request(self.port, self.image, as_base64=True)
        return other


def measure(contenders: dict[str, Contender], *, rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}

    def note(name: str, what: str, value: float) -> None:
        figures[name].setdefault(what, []).append(value)

    for name, c in contenders.items():
        throughput(c, clients=CLIENTS, seconds=1.0)  # warm
        print(f"ready: {name}", file=sys.stderr)
    for number in range(rounds):
        for name, c in contenders.items():
            before = cpu_seconds(c.pid)
            count, rate = throughput(c, clients=CLIENTS, seconds=seconds)
            note(name, "per_second", rate)
            if c.alone is not None:
                note(name, "cpu_ms", 1000 * (cpu_seconds(c.pid) - before) / count)
                note(name, "base64_per_second", throughput(c.as_base64(), clients=CLIENTS, seconds=seconds)[1])
                for threads in c.threads:
                    before = time.process_time()
                    count, rate = alone_throughput(c.alone, threads=threads, seconds=seconds)
                    note(name, f"alone_per_second_{threads}", rate)
                    note(name, f"alone_cpu_ms_{threads}", 1000 * (time.process_time() - before) / count)
                one, alone = latencies(c, seconds=seconds)
                note(name, "latency_ms", one)
                note(name, "alone_ms", alone)
            else:
                note(name, "latency_ms", latencies(c, seconds=seconds)[0])
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return figures


def throughput(contender: Contender, *, clients: int, seconds: float) -> tuple[int, float]:
    """Return answers, and answers a second, with ``clients`` connections that post again once answered.

    One thread waits for all of them: it shares the cores with the server, and eight would wake each other.
    """
    count = 0
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        started = time.perf_counter()
        for _ in range(clients):
            client = stack.enter_context(Client(contender))
            client.send()
            waiting.register(client.socket, selectors.EVENT_READ, client)
        while waiting.get_map():
            answered = waiting.select(timeout=60)
            if not answered:
                raise SystemExit("no answer for a minute")
            for key, _ in answered:
                key.data.receive()
                count += 1
                if time.perf_counter() < started + seconds:
                    key.data.send()
                else:
                    waiting.unregister(key.fileobj)
    return count, count / (time.perf_counter() - started)


def alone_throughput(work: Callable[[], Any], *, threads: int, seconds: float) -> tuple[int, float]:
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def run(i: int) -> None:
        while time.perf_counter() < end:
            work()
            counts[i] += 1

    started = time.perf_counter()
    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return sum(counts), sum(counts) / (time.perf_counter() - started)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, 0 for none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def latencies(contender: Contender, *, seconds: float) -> tuple[float, float]:
    """Return median milliseconds of one client's request and of decode plus model alone, taken in turns."""
    over_http, alone = [], []
    end = time.perf_counter() + seconds
    with Client(contender) as client:
        while time.perf_counter() < end:
            over_http.append(timed(client.post))
            if contender.alone is not None:
                alone.append(timed(contender.alone))
    return statistics.median(over_http), statistics.median(alone) if alone else float("nan")


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


class Client:
    """A kept connection that does as little as possible, because it shares the cores with the server."""

    def __init__(self, contender: Contender) -> None:
        self.request = contender.request
        self.socket = socket.create_connection(("127.0.0.1", contender.port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def post(self) -> bytes:
        self.send()
        return self.receive()

    def send(self) -> None:
        self.socket.sendall(self.request)

    def receive(self) -> bytes:
        answer = self.socket.recv(65536)
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self.socket.recv(65536)
        if not head.startswith(b"HTTP/1.1 200") or b'"label"' not in body:
            raise SystemExit(f"unexpected answer: {answer[:300]!r}")
        return body


def post_request(port: int, image: bytes, *, as_base64: bool) -> bytes:
    """Return a request with the image's bytes, or with base64 in JSON, which is what the peer takes by default."""
    body = json.dumps({"data": base64.b64encode(image).decode()}).encode() if as_base64 else image
    kind = "application/json" if as_base64 else "image/jpeg"
    head = f"POST /score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def ours(scratch: Path, model: Path, image: bytes, runtime: str, precision: str) -> Iterator[Contender]:
    """Our endpoint as deployment starts it: a model in a registry, tuned, in a process of its own."""
    from objrec.config.load import load_config
    from objrec.deployment import service
    from objrec.inference.predictor import Predictor
    from objrec.inference.runtime_choice import tune, tuned_dir
    from objrec.inference.runtimes import callers, is_installed
    from objrec.inference.smoke import Smoke
    from objrec.model_registry.records import Record
    from objrec.model_registry.store import FolderRegistry
    from objrec.models.card import ModelCard
    from objrec.serving.settings import ServiceSettings

    if not is_installed(runtime):
        raise ModuleNotFoundError(runtime)
    registry = FolderRegistry(scratch / f"{runtime}-{precision}")
    card = ModelCard.load(model)
    record = Record(sha256=card.sha256, training_data_fingerprint=card.training_data_fingerprint)
    place = registry.add(model, record)
    files = [("", path) for path in calibration(scratch / "images")]
    tuning = tune(
        place,
        tuned_dir(registry.root, card.sha256),
        smoke=Smoke([], []),
        test_images=files,
        runtime=runtime,
        precision=precision,
        workers=CORES,
        max_accuracy_drop=1.0,  # nothing is at stake: the weights are random
        max_pixels=50_000_000,
    )
    registry.promote(record)
    config = load_config([f"serve.runtime={runtime}", f"serve.precision={precision}"])
    started = service.ensure_started(ServiceSettings.of(config, registry_dir=str(registry.root)))
    try:
        port = int(started.url.rpartition(":")[2])
        chosen = tuning.choose(runtime, precision)
        predictor = Predictor.load(
            place,
            runtime=chosen.runtime,
            precision=chosen.precision,
            int8=tuned_dir(registry.root, card.sha256) / "int8.onnx",
            threads=1,
            workers=CORES,
        )
        yield Contender(
            port,
            image,
            lambda: predictor.probabilities(predictor.pixels(image)[None]),
            started.pid,
            tuple(sorted({CORES, CORES + 1, callers(predictor.session, max_batch=1)})),
        )
    finally:
        service.stop(registry.root)


@contextlib.contextmanager
def litserve(python: str, model: Path, image: bytes, batch: int, workers: int) -> Iterator[Contender]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [python, str(ROOT / "benchmarks" / "litserve_peer.py"), str(model), str(port), str(batch), str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        contender = Contender(port, image).as_base64()
        deadline = time.monotonic() + 120
        while True:
            try:
                with Client(contender) as client:
                    client.post()
                break
            except (OSError, IndexError, SystemExit):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("LitServe did not start") from None
                time.sleep(0.5)
        yield contender
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # its workers too: the group is its own
        process.wait()


def make_model(folder: Path) -> Path:
    import torch

    from objrec.models.backbones import build_backbone
    from objrec.models.folder import save_model_folder

    torch.manual_seed(0)
    model = build_backbone(name="resnet18", num_classes=10, image_size=224).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm zeroes some, which an optimiser could leave out
            torch.nn.init.constant_(module.weight, 0.3)
    save_model_folder(
        folder,
        model,
        images=torch.randn(2, 3, 224, 224),
        config={},
        backbone={"name": "resnet18"},
        class_names=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        input_size=224,
        mean=[0.485, 0.456, 0.406],
        std=[0.229, 0.224, 0.225],
        interpolation="bicubic",
        training_data_fingerprint="benchmark",
        metrics={},
    )
    return folder


def draw_image(size: int, *, seed: int = 0) -> bytes:
    """Return a JPEG of 640 x 480 pixels and about ``size`` bytes: soft shapes under film grain."""
    random = np.random.default_rng(seed)
    soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (640, 480), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 12, (480, 640, 3))
    image = Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8))
    best = b""
    for quality in range(30, 96):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        best = file.getvalue()
        if len(best) >= size:
            break
    return best


def calibration(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.jpg" for i in range(66)]
    for i, path in enumerate(paths):
        if not path.exists():
            path.write_bytes(draw_image(20_000, seed=i))
    return paths


def report(figures: dict[str, dict[str, list[float]]], size: int) -> None:
    peer = max(
        (statistics.median(f["per_second"]) for name, f in figures.items() if name.startswith("LitServe")), default=None
    )
    print(f"{CLIENTS} clients, a JPEG of {size // 1000} kB, ResNet-18 at 224 px, {CORES} cores, {cpu()}")
    columns = ("", "images/s", "spread", "as base64", "x LitServe", "of alone", "of its best (threads)")
    columns += ("CPU ms, alone", "one client, ms", "x alone")
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for name, f in figures.items():
        rate = statistics.median(f["per_second"])
        cells = [f"{rate:.1f}", f"{min(f['per_second']):.1f} to {max(f['per_second']):.1f}"]
        encoded = statistics.median(f.get("base64_per_second", [rate]))
        cells += [f"{encoded:.1f}", f"{rate / peer:.2f}, {encoded / peer:.2f}" if peer else ""]
        if "alone_ms" in f:
            threads = best_alone(f)
            of_alone = {
                n: statistics.median(a / b for a, b in zip(f["per_second"], f[f"alone_per_second_{n}"], strict=True))
                for n in (CORES, threads)
            }
            slower = [a / b for a, b in zip(f["latency_ms"], f["alone_ms"], strict=True)]
            cells.append(f"{of_alone[CORES]:.2f}")
            cells.append(f"{of_alone[threads]:.2f} ({threads})")
            alone_cpu = statistics.median(f[f"alone_cpu_ms_{threads}"])
            cells.append(f"{statistics.median(f['cpu_ms']):.1f}, {alone_cpu:.1f}")
            cells.append(f"{statistics.median(f['latency_ms']):.1f}")
            cells.append(f"{statistics.median(slower):.2f}")
        else:
            cells += ["", "", "", f"{statistics.median(f['latency_ms']):.1f}", ""]
        print(f"| {name} | {' | '.join(cells)} |")


def best_alone(figures: dict[str, list[float]]) -> int:
    """Return the number of threads with which decode and model alone were fastest."""
    prefix = "alone_per_second_"
    rates = {int(k.removeprefix(prefix)): statistics.median(v) for k, v in figures.items() if k.startswith(prefix)}
    return max(rates, key=rates.__getitem__)


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
