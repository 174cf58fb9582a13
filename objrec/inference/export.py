"""Write a model in other formats, each checked on real images against the model that it came from."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from objrec.config.errors import UserError
from objrec.images.image_folder import list_classes
from objrec.inference.predictor import Predictor
from objrec.inference.run_folder import Forward, match_classes, read_images
from objrec.inference.scores import softmax
from objrec.models.card import ModelCard
from objrec.system.files import file_sha256, write_json

TOLERANCE: Final = 1e-3  # of logits relative to the largest, between runtimes that both compute in float32
USAGE: Final = {
    "onnx": "model.onnx: any ONNX runtime; input 'input', output 'logits'",
    "openvino": "openvino/model.xml: OpenVINO's read_model; weights in model.bin",
    "torch_export": "torch_export/model.pt2: torch.export.load(PATH).module()",
    "int8": "int8/: a model folder with a quantised model.onnx; evaluate, predict and serve take it as model_dir",
}

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Check:
    """An exported model beside the original, on the same images.

    Attributes:
        difference: the largest absolute difference of a logit, ``probability_difference`` of a calibrated probability.
        agreement: share of images with the same prediction.
        accuracy, original_accuracy: on the labelled test images that can be read.
    """

    format: str
    path: str
    num_images: int
    difference: float
    probability_difference: float
    agreement: float
    accuracy: float
    original_accuracy: float


class LabelledImages:
    """Labelled test images, decoded anew for each model so that any number of them fits into memory."""

    def __init__(self, folder: Path, card: ModelCard, *, batch_size: int, max_pixels: int) -> None:
        split = list_classes(folder)
        to_model = match_classes(split, card)
        self._files = [path for path, _ in split.files]
        self._all_targets = np.array([to_model[target] for _, target in split.files])
        self._card, self._batch_size, self._max_pixels = card, batch_size, max_pixels
        self.targets = self._all_targets

    def logits(self, forward: Forward) -> Logits:
        """Run ``forward`` on all that can be read; ``targets`` are then theirs."""
        readable: list[bool] = []
        found = []
        reads = read_images(self._files, self._card, batch_size=self._batch_size, max_pixels=self._max_pixels)
        for batch in reads:
            good = [read.pixels for read in batch if read.pixels is not None]
            readable += [read.pixels is not None for read in batch]
            if good:
                found.append(forward(np.stack(good)))
        if not found:
            raise UserError("test_dir: none of its images can be read")
        self.targets = self._all_targets[readable]
        return np.concatenate(found)


def export(
    model_dir: Path,
    out: Path,
    *,
    formats: Sequence[str],
    int8: bool,
    test_dir: Path,
    train_dir: Path | None,
    num_calibration: int,
    batch_size: int,
    max_pixels: int,
) -> list[Check]:
    """Write ``formats`` into the empty folder ``out``, with ``preprocessing.json`` and ``export.json``.

    Args:
        formats: of ``onnx``, ``openvino``, ``torch_export``.
        int8: also quantise, with the ranges of ``num_calibration`` images of ``train_dir``.

    Raises:
        UserError: a package is missing, there are no images, or a format differs from the original.
    """
    if int8 and train_dir is None:
        raise UserError("export.int8=true is calibrated on training images: give train_dir=DIR")
    by_torch = "torch_export" in formats
    original = Predictor.load(model_dir, runtime="torch" if by_torch else "onnxruntime")
    card = original.card
    images = LabelledImages(test_dir, card, batch_size=batch_size, max_pixels=max_pixels)
    expected = images.logits(original.logits)
    checks = []
    for name in formats:
        path, forward = _WRITERS[name](model_dir, out, card)
        check = _check(name, path.relative_to(out), card, expected, images.logits(forward), images.targets)
        if check.difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise UserError(f"{name}: differs from the original by {check.difference:.2g} in a logit; nothing was kept")
        checks.append(check)
    if int8:
        assert train_dir is not None
        folder = _write_int8(model_dir, out / "int8", train_dir, num_calibration)
        quantized = Predictor.load(folder)
        found = images.logits(quantized.logits)
        checks.append(_check("int8", Path("int8"), card, expected, found, images.targets))
    original_name = "the weights in torch" if by_torch else "model.onnx in ONNX Runtime"
    write_json(out / "preprocessing.json", preprocessing(card))
    write_json(out / "export.json", {"original": original_name, "checks": [asdict(check) for check in checks]})
    return checks


def preprocessing(card: ModelCard) -> dict[str, Any]:
    """Return all that is needed to feed the model and to read its answer."""
    return {
        "steps": [
            "decode the image, apply its EXIF orientation, convert to RGB (transparent parts over grey 128)",
            f"cut the largest central square and resize it to {card.input_size} x {card.input_size} pixels"
            f" ({card.interpolation}, with antialiasing, as Pillow's resize does)",
            "divide by 255, subtract mean, divide by std, channel by channel",
            f"float32 tensor 'input' of shape (N, 3, {card.input_size}, {card.input_size}), RGB, any N",
            "'logits' has shape (N, classes): probabilities = softmax(logits / temperature)",
        ],
        "input_size": card.input_size,
        "interpolation": card.interpolation,
        "mean": card.mean,
        "std": card.std,
        "temperature": card.temperature,
        "class_names": card.class_names,
        "model_sha256": card.sha256,
    }


def _check(
    name: str, path: Path, card: ModelCard, expected: Logits, found: Logits, targets: npt.NDArray[np.int64]
) -> Check:
    probabilities = [softmax(logits, card.temperature) for logits in (expected, found)]
    return Check(
        format=name,
        path=path.as_posix(),
        num_images=len(expected),
        difference=float(np.abs(expected - found).max()),
        probability_difference=float(np.abs(probabilities[0] - probabilities[1]).max()),
        agreement=float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
        accuracy=float((found.argmax(axis=1) == targets).mean()),
        original_accuracy=float((expected.argmax(axis=1) == targets).mean()),
    )


Writer = Callable[[Path, Path, ModelCard], tuple[Path, Forward]]


def _write_onnx(model_dir: Path, out: Path, card: ModelCard) -> tuple[Path, Forward]:
    """The folder's ONNX model, checked by onnx, with the preprocessing in its metadata."""
    import onnx
    import onnxruntime

    model = onnx.load(model_dir / "model.onnx")
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param, "training exports with a dynamic batch"
    for key, value in preprocessing(card).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    onnx.checker.check_model(model)
    path = out / "model.onnx"
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(pixels: npt.NDArray[np.uint8]) -> Logits:
        return np.asarray(session.run(None, {"input": card.preprocessing.normalize(pixels)})[0])

    return path, forward


def _write_openvino(model_dir: Path, out: Path, card: ModelCard) -> tuple[Path, Forward]:
    """OpenVINO's own format in float32."""
    try:
        import openvino
    except ImportError:
        raise UserError("export.formats: openvino is not installed: pip install 'objrec[export]'") from None
    path = out / "openvino" / "model.xml"
    path.parent.mkdir()
    core = openvino.Core()
    openvino.save_model(core.read_model(model_dir / "model.onnx"), path, compress_to_fp16=False)
    options = {"INFERENCE_PRECISION_HINT": "f32"}  # or it may compute in bf16 where the processor has it
    compiled = core.compile_model(core.read_model(path), "CPU", options)

    def forward(pixels: npt.NDArray[np.uint8]) -> Logits:
        return np.asarray(compiled([card.preprocessing.normalize(pixels)])[0])

    return path, forward


def _write_torch_export(model_dir: Path, out: Path, card: ModelCard) -> tuple[Path, Forward]:
    """A ``torch.export`` program with a dynamic batch: no TorchScript, no pickled code."""
    import torch

    from objrec.models.folder import load_model

    model = load_model(model_dir)[0]
    example = torch.zeros(2, 3, card.input_size, card.input_size)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    path = out / "torch_export" / "model.pt2"
    path.parent.mkdir()
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()

    def forward(pixels: npt.NDArray[np.uint8]) -> Logits:
        with torch.inference_mode():
            logits: Logits = loaded(torch.from_numpy(card.preprocessing.normalize(pixels))).numpy()
            return logits

    return path, forward


_WRITERS: Final[Mapping[str, Writer]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch_export": _write_torch_export,
}


def _write_int8(model_dir: Path, folder: Path, train_dir: Path, num_calibration: int) -> Path:
    """Write a model folder whose ``model.onnx`` is quantised; its weights file stays, and with it its identity."""
    from objrec.inference.runtime_choice import quantize

    seen: Counter[int] = Counter()
    turns = []
    for path, target in list_classes(train_dir).files:
        turns.append((seen[target], target, path))
        seen[target] += 1
    chosen = [path for _, _, path in sorted(turns)[:num_calibration]]
    folder.mkdir()
    quantize(Predictor.load(model_dir), chosen, model_dir, folder / "model.onnx")
    shutil.copyfile(model_dir / "model.safetensors", folder / "model.safetensors")
    card = ModelCard.load(model_dir)
    hashes = {name: file_sha256(folder / name) for name in ("model.safetensors", "model.onnx")}
    quantization = {"precision": "int8", "calibration_images": len(chosen)}
    ModelCard.model_validate({**card.model_dump(), "files": hashes, "quantization": quantization}).save(folder)
    return folder
