"""Exported models beside the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.evaluation_model import COLOURS, SIZE, evaluate, write_images, write_model
from PIL import Image

from objrec.config.errors import UserError
from objrec.export import run
from objrec.inference import export as exports
from objrec.inference import runtime_choice as tuning
from objrec.inference.predictor import Predictor
from objrec.models.card import ModelCard

CLASSES = sorted(COLOURS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("export")
    test = write_images(root / "test", CLASSES, count=25)
    (test / "red" / "broken.jpg").write_bytes(b"broken")
    train = write_images(root / "train", CLASSES, count=12, seed=6)
    return {"model": write_model(root / "model", CLASSES, temperature=1.5), "test": test, "train": train}


def overrides(folders: dict[str, Path], out: Path, formats: str = "onnx") -> list[str]:
    named = [f"{name}_dir={folders[name]}" for name in ("model", "test")]
    return [*named, f"export_dir={out}", f"export.formats=[{formats}]"]


def checks_of(out: Path) -> dict[str, dict]:
    return {c["format"]: c for c in json.loads((out / "export.json").read_text())["checks"]}


def test_onnx_carries_its_preprocessing_and_takes_any_batch(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(overrides(folders, out))
    check = checks_of(out)["onnx"]
    assert check["num_images"] == 100 and check["agreement"] == 1 and check["difference"] < 1e-4
    metadata = {p.key: p.value for p in onnx.load(out / "model.onnx").metadata_props}
    documented = json.loads((out / "preprocessing.json").read_text())
    assert json.loads(metadata["class_names"]) == documented["class_names"] == CLASSES
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for batch in (1, 3):
        inputs = np.zeros((batch, 3, SIZE, SIZE), np.float32)
        assert session.run(None, {"input": inputs})[0].shape == (batch, 4)


def test_anyone_can_follow_the_documented_preprocessing(folders: dict[str, Path], tmp_path: Path) -> None:
    """Prediction from preprocessing.json and the ONNX file alone, with plain Pillow and numpy."""
    out = tmp_path / "out"
    run(overrides(folders, out))
    told = json.loads((out / "preprocessing.json").read_text())
    path = folders["test"] / "red" / "000.jpg"
    image = Image.open(path).convert("RGB")
    side, size = min(image.size), told["input_size"]
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = (np.asarray(image) / 255 - told["mean"]) / told["std"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (logits,) = session.run(["logits"], {"input": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    weights = np.exp(logits[0] / told["temperature"])
    ((label, probability), *_) = Predictor.load(folders["model"]).predict([path])[0]
    assert told["class_names"][logits[0].argmax()] == label
    # another build of the same filter rounds differently: see objrec/images/resize.py
    assert weights.max() / weights.sum() == pytest.approx(probability, abs=2e-3)


def test_openvino_agrees(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    out = tmp_path / "out"
    run(overrides(folders, out, "openvino"))
    check = checks_of(out)["openvino"]
    assert check["agreement"] == 1 and check["difference"] < 1e-3
    assert (out / "openvino" / "model.bin").is_file()


def test_int8_is_a_model_folder_with_its_accuracy_beside_the_original(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run([*overrides(folders, out), "export.int8=true", f"train_dir={folders['train']}", "export.calibration=10"])
    check = checks_of(out)["int8"]
    assert check["difference"] > 0  # it is another model indeed
    assert abs(check["accuracy"] - check["original_accuracy"]) <= 0.05
    card = ModelCard.load(out / "int8")
    assert card.model_dump()["quantization"] == {"precision": "int8", "calibration_images": 10}
    accuracy, report = evaluate(tmp_path / "evaluated", model_dir=out / "int8", test_dir=folders["test"])
    assert accuracy["accuracy"] * 101 == pytest.approx(check["accuracy"] * 100)  # there the broken image counts
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("int8"))
    assert f"{check['accuracy']:.4f}" in line and f"{check['original_accuracy']:.4f}" in line
    assert (report / "report.html").is_file()


def saturating_sum(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Products of uint8 (N, K) and int8 (K, C), summed as x86 without VNNI does: pairs in 16 bits that saturate."""
    products = activations.astype(np.int32)[:, :, None] * weights.astype(np.int32)
    if products.shape[1] % 2:
        products = np.pad(products, ((0, 0), (0, 1), (0, 0)))
    return (products[:, ::2] + products[:, 1::2]).clip(-(2**15), 2**15 - 1).sum(axis=1)


def test_int8_weights_are_the_same_model_on_every_processor(folders: dict[str, Path], tmp_path: Path) -> None:
    """No activation can make a pair of products leave 16 bits, whatever this processor's own kernels are."""
    images = sorted(folders["train"].glob("*/*.jpg"))[:8]
    path = tuning.quantize(Predictor.load(folders["model"]), images, folders["model"], tmp_path / "int8.onnx")
    graph = onnx.load(path).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    weights = [constants[sources[n.input[1]]] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(weights) == 2 and {w.dtype for w in weights} == {np.dtype(np.int8)}
    for weight in weights:
        assert 2 * 255 * int(np.abs(weight.astype(np.int32)).max()) < 2**15
        rows = weight.reshape(len(weight), -1).T
        extremes = np.random.default_rng(0).choice(np.array([0, 254, 255], np.uint8), (200, len(rows)))
        assert (saturating_sum(extremes, rows) == extremes.astype(np.int32) @ rows.astype(np.int32)).all()
    assert saturating_sum(np.array([[255, 255]], np.uint8), np.array([[127], [127]], np.int8))[0, 0] == 2**15 - 1


def test_a_format_that_differs_is_refused_and_nothing_stays(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model_dir: Path, out: Path, card: ModelCard) -> tuple[Path, exports.Forward]:
        (out / "model.onnx").write_bytes(b"x")
        return out / "model.onnx", lambda pixels: np.zeros((len(pixels), 4), np.float32)

    monkeypatch.setattr(exports, "_WRITERS", {"onnx": broken})
    with pytest.raises(UserError, match="differs from the original"):
        run(overrides(folders, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["export.int8=true"], "train_dir=DIR"),
        (["test_dir=null"], "test_dir=DIR is needed"),
        (["export.formats=[onxx]"], "export.formats"),
        (["model_dir=nowhere"], "nowhere"),
    ],
)
def test_mistakes(folders: dict[str, Path], tmp_path: Path, more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run([*overrides(folders, tmp_path / "out"), *more])
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(overrides(folders, tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_every_format_of_a_real_backbone(tmp_path: Path) -> None:
    import torch

    from objrec.models.backbones import build_backbone
    from objrec.models.folder import save_model_folder

    torch.manual_seed(0)
    backbone = {"name": "resnet18", "small_input": False, "drop_rate": 0.0}
    save_model_folder(
        tmp_path / "model",
        build_backbone(**backbone, num_classes=4, image_size=32).eval(),
        images=torch.rand(4, 3, 32, 32),
        config={},
        backbone=backbone,
        class_names=CLASSES,
        input_size=32,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        interpolation="bicubic",
        training_data_fingerprint="0" * 64,
        metrics={},
    )
    test = write_images(tmp_path / "test", CLASSES, count=5)
    arguments = [f"model_dir={tmp_path / 'model'}", f"test_dir={test}", f"export_dir={tmp_path / 'out'}"]
    run([*arguments, "export.formats=[onnx,torch_export]"])
    checks = checks_of(tmp_path / "out")
    assert set(checks) == {"onnx", "torch_export"}
    assert all(c["agreement"] == 1 and c["difference"] < 1e-3 for c in checks.values())
    program = torch.export.load(tmp_path / "out" / "torch_export" / "model.pt2").module()
    assert program(torch.zeros(5, 3, 32, 32)).shape == (5, 4)
