"""What runs the model: one small interface, one class per runtime."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from objrec.config.errors import UserError, did_you_mean
from objrec.models.card import ModelCard
from objrec.system.cores import available_cores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Logits = npt.NDArray[np.float32]

RUNTIMES: Final = {"onnxruntime": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32",)}
INT8_FILE: Final = "int8.onnx"
NICER: Final = 5  # steps of priority: a third of a share of the processor; figures in docs/benchmarks-serving.md
T = TypeVar("T")


class Session(Protocol):
    """A loaded model. May be called from as many threads as ``workers`` said, unless it is ``batched``.

    Attributes:
        batched: larger batches pay, as on a GPU: one thread should call it, with all that waits.
        own_threads: the model runs on threads of the runtime, and who calls it only waits.
    """

    runtime: str
    precision: str
    batched: bool
    own_threads: bool

    def logits(self, pixels: Pixels) -> Logits:
        """Map uint8 (N, size, size, 3) to float32 logits (N, classes)."""


class Normalizer:
    """``Preprocessing.normalize`` by table, three times as fast: a byte has 256 values, so all answers are known."""

    def __init__(self, card: ModelCard) -> None:
        import numpy as np

        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None, None], 3, axis=3)
        self._tables = np.ascontiguousarray(card.preprocessing.normalize(ramp)[0, :, :, 0])  # (3, 256)

    def __call__(self, pixels: Pixels) -> Logits:
        """Turn uint8 (N, H, W, 3) into normalised float32 (N, 3, H, W)."""
        import numpy as np

        n, height, width, _ = pixels.shape
        out = np.empty((n, 3, height, width), dtype=np.float32)
        for channel, table in enumerate(self._tables):
            np.take(
                table, pixels[..., channel], out=out[:, channel], mode="clip"
            )  # clip never happens; it skips a check
        return out


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU."""

    runtime = "onnxruntime"
    batched = False
    own_threads = False

    def __init__(self, model: Path, card: ModelCard, *, precision: str, threads: int, workers: int) -> None:
        import onnxruntime

        self.precision = precision
        self._normalize = Normalizer(card)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors: its warnings are about graphs that it optimises anyway
        if workers > 1:  # a thread that spins for work takes the core from a neighbour's image
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception types share no public base
            raise _not_loaded(model, "ONNX Runtime", error) from None
        self._input = self._session.get_inputs()[0].name

    def logits(self, pixels: Pixels) -> Logits:
        (logits,) = self._session.run(None, {self._input: self._normalize(pixels)})
        return logits  # type: ignore[no-any-return]


class OpenVinoSession:
    """OpenVINO on the CPU; normalisation is compiled into the model."""

    runtime = "openvino"
    batched = False
    own_threads = True

    def __init__(self, model: Path, card: ModelCard, *, precision: str, threads: int, workers: int) -> None:
        import openvino
        from openvino import properties
        from openvino.preprocess import PrePostProcessor

        self.precision = precision
        core = openvino.Core()
        try:
            network = core.read_model(model)
            steps = PrePostProcessor(network)
            steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
            steps.input().model().set_layout(openvino.Layout("NCHW"))
            scaled = steps.input().preprocess().convert_element_type(openvino.Type.f32)
            scaled.mean([255 * float(m) for m in card.mean]).scale([255 * float(s) for s in card.std])
            options = {
                properties.hint.inference_precision: openvino.Type.bf16 if precision == "bf16" else openvino.Type.f32,
                properties.num_streams: properties.streams.Num(workers),
                properties.hint.enable_cpu_pinning: False,
                **({properties.inference_num_threads: threads * workers} if threads else {}),
            }
            network = steps.build()
            self._model = _at_low_priority(lambda: core.compile_model(network, "CPU", options))
        except RuntimeError as error:
            raise _not_loaded(model, "OpenVINO", error) from None
        self._own = threading.local()

    def logits(self, pixels: Pixels) -> Logits:
        if not hasattr(self._own, "request"):
            self._own.request = self._model.create_infer_request()
        results = self._own.request.infer([pixels], share_inputs=True, share_outputs=True)
        return results[0].copy()  # type: ignore[no-any-return]  # the request's own memory is used again


def _at_low_priority(load: Callable[[], T]) -> T:
    """Load a model so that the threads that it makes give way to those that feed it.

    On Linux a thread has a priority of its own and hands it on to those that it makes: it is lowered in one that ends
    here. Who holds Python's lock, and all who wait for it, then need not wait until a model has done its image.
    """

    def run() -> T:
        if sys.platform == "linux":
            os.nice(NICER)
        return load()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


class TorchSession:
    """The original model, from its weights; on a GPU where there is one."""

    runtime = "torch"
    precision = "fp32"
    own_threads = False

    def __init__(self, model_dir: Path, card: ModelCard, *, threads: int) -> None:
        import torch

        from objrec.models.folder import load_model

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.batched = self._device == "cuda"
        if threads:
            torch.set_num_threads(threads)
        self._model = load_model(model_dir)[0].to(self._device)
        self._normalize = Normalizer(card)
        self._torch = torch

    def logits(self, pixels: Pixels) -> Logits:
        with self._torch.inference_mode():
            inputs = self._torch.from_numpy(self._normalize(pixels)).to(self._device)
            return self._model(inputs).float().cpu().numpy()  # type: ignore[no-any-return]


def open_session(
    model_dir: Path,
    card: ModelCard,
    *,
    runtime: str,
    precision: str,
    threads: int,
    workers: int,
    int8: Path | None = None,
) -> Session:
    """Load ``model_dir`` into a runtime.

    Args:
        threads: of one prediction; 0 lets the runtime choose.
        workers: how many threads will predict at once.
        int8: the quantised model, for ``precision="int8"``.

    Raises:
        UserError: the runtime is not installed, does not offer the precision, or cannot load the model.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"serve.runtime={runtime}: there is no such runtime.{did_you_mean(runtime, RUNTIMES)}")
    if precision not in RUNTIMES[runtime]:
        offers = " and ".join(r for r, precisions in RUNTIMES.items() if precision in precisions)
        raise UserError(f"serve.precision={precision} is not offered by {runtime}: {offers} offer it")
    if runtime == "torch":
        return TorchSession(model_dir, card, threads=threads)
    path = model_dir / "model.onnx"
    if precision == "int8":
        assert int8 is not None
        path = int8
    if runtime == "onnxruntime":
        return OnnxRuntimeSession(path, card, precision=precision, threads=threads, workers=workers)
    try:
        return OpenVinoSession(path, card, precision=precision, threads=threads, workers=workers)
    except ModuleNotFoundError:
        raise UserError("serve.runtime=openvino: it is not installed: pip install 'objrec[openvino]'") from None


def callers(session: Session, *, max_batch: int) -> int:
    """Return how many threads keep a model busy that is served, each with one image from decoding to answer."""
    if session.batched:
        return max_batch
    # one more than cores: while a thread waits for Python's lock, another's image keeps its core busy; where the
    # model has threads of its own, as many decode for them, and two more wait for the lock
    return 2 * available_cores() + 3 if session.own_threads else available_cores() + 1


def is_installed(runtime: str) -> bool:
    from importlib.util import find_spec

    return find_spec(runtime) is not None


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself; elsewhere it is emulated and slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _not_loaded(model: Path, runtime: str, error: Exception) -> UserError:
    line: Any = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UserError(f"{model} cannot be loaded by {runtime}: {line}")
