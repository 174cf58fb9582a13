"""A trained model that answers for pictures, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from objrec.models.card import ModelCard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Predictor:
    """Pictures in, class probabilities out.

    Example:
        >>> predictor = Predictor.load(Path("runs/pipeline/latest/train/model_dir"))
        >>> predictor.predict([Path("cat.jpg")])[0][0]
        ('cat', 0.97)
    """

    card: ModelCard
    session: Any  # onnxruntime.InferenceSession

    @classmethod
    def load(cls, model_dir: Path, *, threads: int = 0) -> Self:
        """Load a model folder; ``threads`` 0 lets the runtime choose. Raises UserError for a damaged folder."""
        import onnxruntime

        card = ModelCard.load(model_dir)
        card.verify(model_dir)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model_dir / "model.onnx", options, providers=["CPUExecutionProvider"])
        return cls(card, session)

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, size, size, 3) to float32 logits (N, classes)."""
        inputs = self.card.preprocessing.normalize(pixels)
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: inputs})
        return logits  # type: ignore[no-any-return]

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Map uint8 (N, size, size, 3) to calibrated probabilities (N, classes), rows summing to 1."""
        return softmax(self.logits(pixels), self.card.temperature)

    def predict(self, pictures: Iterable[bytes | Path], *, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each picture its ``top_k`` (label, probability), best first. Raises ImageError for a bad one."""
        return [
            self.ranked(self.probabilities(self.card.preprocessing.pixels(p, max_pixels=MAX_PIXELS)[None])[0], top_k)
            for p in pictures
        ]

    def ranked(self, probabilities: npt.NDArray[np.float64], top_k: int) -> list[tuple[str, float]]:
        """Pair the ``top_k`` largest of (classes,) probabilities with their labels, best first."""
        order: Sequence[int] = (-probabilities).argsort(kind="stable")[:top_k].tolist()
        return [(self.card.class_names[i], float(probabilities[i])) for i in order]


def softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return softmax(logits / temperature) along the last axis, in float64."""
    import numpy as np

    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]
