"""What runs the model: one small interface, one class per runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from objrec.config.errors import UserError, did_you_mean
from objrec.models.card import ModelCard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Normalize = Callable[["npt.NDArray[np.uint8]"], "npt.NDArray[np.float32]"]


class Session(Protocol):
    """A loaded model. May be called from as many threads as ``workers`` said."""

    runtime: str
    precision: str

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, size, size, 3) to float32 logits (N, classes)."""


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU."""

    runtime = "onnxruntime"

    def __init__(self, model: Path, normalize: Normalize, *, precision: str, threads: int, workers: int) -> None:
        import onnxruntime

        self.precision = precision
        self._normalize = normalize
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if workers > 1:  # a thread that spins for work takes the core from a neighbour's picture
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception types share no public base
            raise UserError(f"{model} cannot be loaded by ONNX Runtime: {_first_line(error)}") from None
        self._input = self._session.get_inputs()[0].name

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (logits,) = self._session.run(None, {self._input: self._normalize(pixels)})
        return logits  # type: ignore[no-any-return]


def open_session(
    model_dir: Path, card: ModelCard, *, runtime: str, precision: str, threads: int, workers: int
) -> Session:
    """Load ``model_dir`` into a runtime. Raises UserError."""
    kinds: dict[str, Any] = {"onnxruntime": OnnxRuntimeSession}
    if runtime not in kinds:
        raise UserError(f"runtime '{runtime}' is not one of ours.{did_you_mean(runtime, kinds)}")
    session: Session = kinds[runtime](
        model_dir / "model.onnx",
        card.preprocessing.normalize,
        precision=precision,
        threads=threads,
        workers=workers,
    )
    return session


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
