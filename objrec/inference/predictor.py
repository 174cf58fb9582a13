"""A trained model that answers for images, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from objrec.config.errors import UserError
from objrec.models.card import ModelCard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from objrec.images.budget import Budget
    from objrec.inference.given import ImageLike
    from objrec.inference.runtimes import Session

Ranked = list[tuple[str, float]]  # (label, probability), best first
MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Predictor:
    """Images in, class probabilities out. Safe to call from many threads at once.

    Example:
        >>> predictor = Predictor.load(Path("runs/pipeline/latest/train/model_dir"))
        >>> predictor.predict("cat.jpg")
        [('cat', 0.97), ('dog', 0.02), ...]
    """

    card: ModelCard
    session: Session
    max_pixels: int = MAX_PIXELS
    workers: int = 1

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        threads: int = 0,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
        workers: int = 1,
        int8: Path | None = None,
        max_pixels: int = MAX_PIXELS,
        verify: bool = True,
    ) -> Self:
        """Load a model folder.

        Args:
            threads: of one prediction; 0 lets the runtime choose.
            runtime: ``onnxruntime``, ``openvino`` or ``torch``.
            precision: of the arithmetic: ``fp32``, ``bf16`` or ``int8``.
            workers: how many threads will call at once; a batch is divided among as many, except on a GPU.
            int8: the quantised model, for ``precision="int8"``.
            max_pixels: images above it are refused, see ``objrec.images.decode``.
            verify: check the hashes of the files first; False only where the caller has just done so.

        Raises:
            UserError: for a damaged folder, a model that does not fit its card, or a runtime that is not installed.
        """
        from objrec.inference.runtimes import open_session

        card = ModelCard.load(model_dir)
        if verify:
            card.verify(model_dir)
        try:
            session = open_session(
                model_dir, card, runtime=runtime, precision=precision, threads=threads, workers=workers, int8=int8
            )
        except RuntimeError as error:  # of torch or OpenVINO, whose first answer or weights are of another shape
            raise _unfit(model_dir, error) from None
        _check_fit(session, card, model_dir)
        return cls(card, session, max_pixels, workers)

    def pixels(self, image: bytes | Path, *, budget: Budget | None = None) -> npt.NDArray[np.uint8]:
        """Decode and crop an image to uint8 (size, size, 3).

        Args:
            budget: memory that others decode with too; what the image takes is waited for. An image larger than all of
                it waits until it is alone.

        Raises:
            ImageError: as ``objrec.images.decode.decode_stored``.
        """
        preprocessing = self.card.preprocessing
        if budget is None:
            return preprocessing.pixels(image, max_pixels=self.max_pixels)
        from objrec.images.budget import decoding_cost
        from objrec.images.decode import NotReduced

        data = image.read_bytes() if isinstance(image, Path) else image
        cost = decoding_cost(data, max_pixels=self.max_pixels, target=preprocessing.target)
        try:
            with budget.take(min(cost.memory, budget.size)):
                return preprocessing.pixels(data, max_pixels=self.max_pixels, patient=False)
        except NotReduced:
            with budget.take(min(cost.patient, budget.size)):
                return preprocessing.pixels(data, max_pixels=self.max_pixels)

    def logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Map uint8 (N, size, size, 3) to float32 logits (N, classes)."""
        if self.workers == 1 or self.session.batched or len(pixels) == 1:
            return self.session.logits(pixels)
        import numpy as np

        parts = np.array_split(pixels, min(self.workers, len(pixels)))
        return np.concatenate(list(self._threads.map(self.session.logits, parts)))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Map uint8 (N, size, size, 3) to calibrated probabilities (N, classes), rows summing to 1."""
        from objrec.inference.scores import softmax

        return softmax(self.logits(pixels), self.card.temperature)

    @overload
    def predict(self, images: ImageLike, *, top_k: int = ...) -> Ranked: ...

    @overload
    def predict(self, images: Iterable[ImageLike], *, top_k: int = ...) -> list[Any]: ...

    def predict(self, images: Any, *, top_k: int = 5) -> Any:
        """Return the ``top_k`` (label, probability) of an image, best first; of several a list of such.

        Args:
            images: a path, encoded bytes, an open binary file, a Pillow image or a uint8 array (height, width) or
                (height, width, 3 or 4), RGB; or an iterable of any of these.

        Returns:
            for several images one entry each, in order: a bad one has its error in place of labels, and the others
            are not affected.

        Raises:
            ImageError: the one image is bad.
            UserError: its file cannot be read.
        """
        from objrec.images.decode import ImageError
        from objrec.inference.given import encoded, is_one

        def one(image: ImageLike) -> Ranked:
            return self.ranked(self.probabilities(self.pixels(encoded(image))[None])[0], top_k)

        def each(image: ImageLike) -> Ranked | ImageError | UserError:
            try:
                return one(image)
            except (ImageError, UserError) as error:
                return error

        return one(images) if is_one(images) else [each(image) for image in images]

    def known_score(self, logits: npt.NDArray[np.float32]) -> tuple[float, float]:
        """Return the score of (1, classes) logits and the threshold below which the image shows none of the classes.

        Raises:
            UserError: the model folder has no threshold for it.
        """
        from objrec.inference.scores import known_score

        rule = self.card.unknown
        if rule is None:
            raise UserError("this model has no threshold for unknown images: train it again")
        return float(known_score(logits, rule["score"], self.card.temperature)[0]), float(rule["threshold"])

    def ranked(self, probabilities: npt.NDArray[np.float64], top_k: int) -> list[tuple[str, float]]:
        """Pair the ``top_k`` largest of (classes,) probabilities with their labels, best first."""
        order: Sequence[int] = (-probabilities).argsort(kind="stable")[:top_k].tolist()
        return [(self.card.class_names[i], float(probabilities[i])) for i in order]


def _check_fit(session: Session, card: ModelCard, model_dir: Path) -> None:
    """Answer for a black image: the model takes images of the card's size, and has an output for each class.

    It is warm then, as the first run allocates. OpenVINO's bindings look numpy up on first use, too, and two threads
    that do so at once deadlock.
    """
    import numpy as np

    size, classes = card.input_size, len(card.class_names)
    try:
        shape = session.logits(np.zeros((1, size, size, 3), dtype=np.uint8)).shape
    except Exception as error:  # the runtimes' own exception types share no public base
        raise _unfit(model_dir, error) from None
    if shape != (1, classes):
        raise _unfit(model_dir, f"it has {shape[-1]} outputs, its card names {classes} classes")


def _unfit(model_dir: Path, reason: Exception | str) -> UserError:
    line = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return UserError(f"{model_dir}: the model fails ({line}): its model.json must be the one that was written with it")
