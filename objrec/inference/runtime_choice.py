"""Which runtime and precision serve a model on this machine: measured when it is deployed, never guessed.

A candidate may serve when it agrees with the original (ONNX Runtime, float32) on the smoke images and, in a lower
precision, when what it loses on the test set was measured and stays within ``serve.max_accuracy_drop``. Of those the
fastest is taken. The results are in ``registry_dir/tuned/<sha256>/``, beside the quantised model.
"""

from __future__ import annotations

import hashlib
import logging
import math
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ValidationError

from objrec.config.errors import UserError
from objrec.images.decode import ImageError
from objrec.inference.predictor import Predictor
from objrec.inference.runtimes import INT8_FILE, RUNTIMES, has_bf16, is_installed
from objrec.inference.smoke import TOLERANCE, Smoke
from objrec.system.cores import available_cores
from objrec.system.files import file_sha256, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CALIBRATION_IMAGES: Final = 64  # only the ranges of activations are taken from them; they are not measured on
MEASURED_IMAGES: Final = 2000  # standard error of a difference of some points: a few tenths
BATCH: Final = 32
SECONDS: Final = 0.5  # of timing for each candidate


class RuntimeCandidate(BaseModel):
    """A way to run a model, and what was found about it. ``refused`` says why it may not serve."""

    runtime: str
    precision: str
    milliseconds: float | None = None  # for an image, with all cores at work
    difference: float | None = None  # largest, of a probability on the smoke images
    accuracy_drop: float | None = None  # share of the test images
    num_images: int = 0
    refused: str | None = None

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"


class Tuning(BaseModel):
    """What was found for a model. ``machine`` says where: speeds and kernels are that machine's."""

    machine: str
    int8_sha256: str | None = None
    candidates: list[RuntimeCandidate]

    @classmethod
    def load(cls, folder: Path) -> Tuning | None:
        """Read the findings made on this machine with these libraries, or None."""
        try:
            found = cls.model_validate_json((folder / "tuning.json").read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None
        return found if found.machine == machine() else None

    def choose(self, runtime: str, precision: str) -> RuntimeCandidate:
        """Return the fastest that fits a runtime and a precision, each possibly ``auto``. Raises UserError."""
        matching = [c for c in self.candidates if runtime in ("auto", c.runtime) and precision in ("auto", c.precision)]
        fit = [c for c in matching if c.refused is None]
        if not fit:
            why = "; ".join(f"{c.name}: {c.refused}" for c in matching) or "not tried when the model was deployed"
            raise UserError(f"serve.runtime={runtime} serve.precision={precision}: {why}")
        return min(fit, key=lambda c: c.milliseconds if c.milliseconds is not None else math.inf)


def tuned_dir(registry_dir: Path, sha256: str) -> Path:
    return registry_dir / "tuned" / sha256


def machine() -> str:
    """Return a fingerprint of what the findings depend on: processor, cores, versions of the runtimes."""
    parts = [platform.machine(), str(available_cores()), str(has_bf16())]
    for runtime in RUNTIMES:
        try:
            parts.append(f"{runtime}={metadata.version(runtime)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{runtime}=none")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        parts += [line for line in lines if line.startswith(("model name", "flags"))][:2]
    except OSError:
        parts.append(platform.processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def possible(runtime: str, precision: str) -> list[RuntimeCandidate]:
    """Return what could serve under the settings. ``auto`` means what is installed, without torch, and pays here."""
    runtimes = [r for r in ("onnxruntime", "openvino") if is_installed(r)] if runtime == "auto" else [runtime]
    found = []
    for r in runtimes:
        for p in RUNTIMES.get(r, ()):
            if p == precision or (precision == "auto" and (p != "bf16" or has_bf16())):
                found.append(RuntimeCandidate(runtime=r, precision=p))
    return found


def tune(
    model_dir: Path,
    folder: Path,
    *,
    smoke: Smoke,
    test_images: Sequence[tuple[str, Path]],
    runtime: str,
    precision: str,
    workers: int,
    max_accuracy_drop: float,
    max_pixels: int,
) -> Tuning:
    """Try every candidate, write the findings to ``folder`` and return them.

    Args:
        test_images: (class name, file), the classes taking turns.
        max_accuracy_drop: a share; a test set of fewer than its inverse cannot show it, so low precision is refused.

    Raises:
        UserError: no candidate may serve.
    """
    reference = Predictor.load(model_dir, threads=1, workers=workers, verify=False, max_pixels=max_pixels)
    candidates = possible(runtime, precision)
    calibration = test_images[:CALIBRATION_IMAGES]
    measured = test_images[CALIBRATION_IMAGES:][:MEASURED_IMAGES]
    needed = math.ceil(1 / max_accuracy_drop) if max_accuracy_drop > 0 else MEASURED_IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    int8 = None
    open_candidates: list[tuple[RuntimeCandidate, Predictor]] = []
    for c in candidates:
        try:
            if c.precision != "fp32" and len(measured) < needed:
                raise UserError(f"{len(measured)} test images cannot show an accuracy drop of {max_accuracy_drop:g}")
            if c.precision == "int8" and int8 is None:
                int8 = quantize(reference, [path for _, path in calibration], model_dir, folder / INT8_FILE)
            predictor = Predictor.load(
                model_dir,
                runtime=c.runtime,
                precision=c.precision,
                int8=int8,
                threads=1,
                workers=workers,
                verify=False,
                max_pixels=max_pixels,
            )
            c.difference = smoke.difference(predictor)
            if c.difference > TOLERANCE[c.precision]:
                raise UserError(f"differs from the original by {c.difference:.3f} in a probability")
            open_candidates.append((c, predictor))
        except UserError as error:
            c.refused = str(error)
    _measure_accuracy(reference, open_candidates, measured, max_accuracy_drop)
    fit = [(c, predictor) for c, predictor in open_candidates if c.refused is None]
    if len(fit) > 1:  # nothing to choose from otherwise
        for c, predictor in fit:
            c.milliseconds = milliseconds(predictor, workers=workers)
    found = Tuning(machine=machine(), int8_sha256=None if int8 is None else file_sha256(int8), candidates=candidates)
    found.choose(runtime, precision)
    write_atomically(folder / "tuning.json", found.model_dump_json(indent=2) + "\n")
    return found


def _measure_accuracy(
    reference: Predictor,
    candidates: Sequence[tuple[RuntimeCandidate, Predictor]],
    images: Sequence[tuple[str, Path]],
    max_accuracy_drop: float,
) -> None:
    low = [(c, p) for c, p in candidates if c.precision != "fp32"]
    if not low:
        return
    right = [0] * (len(low) + 1)
    for labels, pixels in _batches(reference, images):
        for i, predictor in enumerate((reference, *(p for _, p in low))):
            for row in range(len(labels)):  # one by one, as the endpoint does
                answer = int(predictor.logits(pixels[row : row + 1])[0].argmax())
                right[i] += reference.card.class_names[answer] == labels[row]
    for (c, _), count in zip(low, right[1:], strict=True):
        c.num_images = len(images)
        c.accuracy_drop = (right[0] - count) / len(images)
        if c.accuracy_drop > max_accuracy_drop:
            c.refused = (
                f"loses {c.accuracy_drop:.4f} of accuracy on {len(images)} test images, more than "
                f"serve.max_accuracy_drop={max_accuracy_drop:g}"
            )


def _batches(
    predictor: Predictor, images: Sequence[tuple[str, Path]]
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    import numpy as np

    for start in range(0, len(images), BATCH):
        labels, rows = [], []
        for label, path in images[start : start + BATCH]:
            try:
                rows.append(predictor.pixels(path))
            except ImageError:  # wrong for every candidate alike
                continue
            labels.append(label)
        if rows:
            yield labels, np.stack(rows)


def quantize(predictor: Predictor, images: Sequence[Path], model_dir: Path, path: Path) -> Path:
    """Write an int8 model: weights per channel, activations by the ranges seen on ``images``. Raises UserError.

    Weights take 7 bits, -64 to 64, so that every processor computes the same. Without VNNI the kernels of ONNX Runtime
    and OpenVINO add two products of an activation (0 to 255) and a weight in 16 bits that saturate: 8-bit weights lose
    accuracy there without a word, 7-bit ones cannot reach the limit (2 x 255 x 64 = 32,640).

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, as ONNX Runtime's static quantisation does it (QDQ format).
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from objrec.inference.runtimes import Normalizer

    normalize = Normalizer(predictor.card)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._rows = ({name: normalize(pixels)} for _, pixels in _batches(predictor, [("", p) for p in images]))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            return next(self._rows, None)

    logging.getLogger().setLevel(logging.ERROR)  # it recommends through the root logger what is done here already
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=path.parent) as scratch:
        prepared, done = Path(scratch) / "prepared.onnx", Path(scratch) / path.name
        try:
            quant_pre_process(model_dir / "model.onnx", prepared, skip_symbolic_shape=True)
            quantization.quantize_static(
                prepared,
                done,
                Reader(_input_name(prepared)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # of onnx, of onnxruntime: no common base
            raise UserError(f"cannot be quantised: {str(error).splitlines()[0] if str(error) else error!r}") from None
        done.replace(path)
    return path


def _input_name(model: Path) -> str:
    import onnx

    name: str = onnx.load(model, load_external_data=False).graph.input[0].name
    return name


def milliseconds(predictor: Predictor, *, workers: int, seconds: float = SECONDS) -> float:
    """Return the time for an image when ``workers`` threads keep the model busy."""
    import numpy as np

    size = predictor.card.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    for _ in range(2):
        predictor.logits(pixels)
    counts = [0] * workers
    begin = time.perf_counter()

    def work(worker: int) -> None:
        while time.perf_counter() - begin < seconds:
            predictor.logits(pixels)
            counts[worker] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1000 * (time.perf_counter() - begin) / sum(counts)
