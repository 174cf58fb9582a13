"""Runtimes agree with the original, and low precision serves only where its loss was measured."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.serving import CLASSES, image, make_images, make_model, put_in_registry, to_bytes

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.deployment import acceptance as probe
from objrec.inference import runtime_choice as tuning
from objrec.inference.predictor import Predictor
from objrec.inference.runtime_choice import Tuning, tuned_dir
from objrec.inference.runtimes import NICER, Normalizer, OpenVinoSession, callers, is_installed
from objrec.inference.smoke import Smoke, images_in_turns
from objrec.model_registry.store import FolderRegistry
from objrec.models.card import ModelCard
from objrec.serving.metrics import Metrics
from objrec.serving.model_manager import ModelManager
from objrec.serving.settings import ServiceSettings
from objrec.serving.state import State
from objrec.system.cores import available_cores

RUNTIMES = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not is_installed("openvino"), reason="needs openvino")),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=30)


def test_the_table_normalises_exactly_as_preprocessing_does(model_dir: Path) -> None:
    card = ModelCard.load(model_dir)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(Normalizer(card)(pixels), card.preprocessing.normalize(pixels))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_agree_with_the_original(runtime: str, model_dir: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    original = Predictor.load(model_dir).logits(pixels)
    other = Predictor.load(model_dir, runtime=runtime, threads=1, workers=2)
    assert np.allclose(other.logits(pixels), original, atol=1e-4)
    assert np.allclose(other.logits(pixels[:1]), original[:1], atol=1e-4)
    first = other.logits(pixels[:1])
    other.logits(pixels[1:2])
    assert np.allclose(first, original[:1], atol=1e-4)  # an answer is the caller's own


@pytest.mark.skipif(sys.platform != "linux" or not is_installed("openvino"), reason="needs openvino on Linux")
def test_threads_of_the_model_give_way_to_those_that_feed_it(model_dir: Path) -> None:
    def priorities() -> dict[str, int]:
        found = {}
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # a thread of an earlier test may end between list and look
                found[task.name] = os.getpriority(os.PRIO_PROCESS, int(task.name))
        return found

    before = priorities()
    predictor = Predictor.load(model_dir, runtime="openvino", threads=1, workers=2)
    predictor.logits(np.zeros((2, 32, 32, 3), dtype=np.uint8))
    after = priorities()
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert [n for task, n in after.items() if task not in before].count(min(ours + NICER, 19)) >= 2
    assert {task: n for task, n in after.items() if task in before} == {t: n for t, n in before.items() if t in after}


@pytest.mark.skipif(not is_installed("openvino"), reason="needs openvino")
def test_openvino_has_answered_once_before_many_threads_may_ask(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bindings hang where two threads are the first; one process can show that only once, and by chance."""
    asked = []
    logits = OpenVinoSession.logits

    def counted(session: OpenVinoSession, pixels: np.ndarray) -> np.ndarray:
        asked.append((threading.get_ident(), pixels.shape))
        return logits(session, pixels)

    monkeypatch.setattr(OpenVinoSession, "logits", counted)
    Predictor.load(model_dir, runtime="openvino", threads=1, workers=2)
    assert asked == [(threading.get_ident(), (1, 32, 32, 3))]


def test_a_served_model_has_the_threads_that_keep_it_busy(model_dir: Path, tmp_path: Path) -> None:
    FolderRegistry(tmp_path).promote(put_in_registry(tmp_path, model_dir))
    found = {}
    for options in ((), ("serve.workers=3",)):
        config = load_config(["serve.runtime=onnxruntime", "serve.precision=fp32", *options])
        state = State(ServiceSettings.of(config, registry_dir=str(tmp_path)))
        state.models.follow()
        found[options] = state.scheduler.workers
        state.scheduler.close()
    assert found == {(): available_cores() + 1, ("serve.workers=3",): 3}
    session = SimpleNamespace(batched=False, own_threads=True)
    assert callers(session, max_batch=8) == 2 * available_cores() + 3
    session.batched = True
    assert callers(session, max_batch=8) == 8


def test_what_cannot_be_had_is_said(model_dir: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'onnxruntime'"):
        Predictor.load(model_dir, runtime="onxruntime")
    with pytest.raises(UserError, match="not offered by onnxruntime"):
        Predictor.load(model_dir, precision="bf16")


def tune(model_dir: Path, folder: Path, images: Path, **options: object) -> Tuning:
    predictor = Predictor.load(model_dir)
    data = [to_bytes(image(label, 99)) for label in CLASSES]
    answers = [predictor.probabilities(predictor.pixels(d)[None])[0].tolist() for d in data]
    arguments = {
        "smoke": Smoke(data, answers),
        "test_images": images_in_turns(images),
        "runtime": "onnxruntime",
        "precision": "auto",
        "workers": 2,
        "max_accuracy_drop": 0.1,
        "max_pixels": 10**7,
        **options,
    }
    return tuning.tune(model_dir, folder, **arguments)  # type: ignore[arg-type]


def test_int8_is_measured_and_may_serve(model_dir: Path, images: Path, tmp_path: Path) -> None:
    found = tune(model_dir, tmp_path, images)
    int8 = next(c for c in found.candidates if c.precision == "int8")
    assert int8.refused is None and int8.num_images == 90 - tuning.CALIBRATION_IMAGES
    assert int8.accuracy_drop is not None and int8.accuracy_drop <= 0.1 and int8.milliseconds is not None
    assert found.choose("auto", "int8").name == "onnxruntime int8"
    assert Tuning.load(tmp_path) == found
    quantised = Predictor.load(model_dir, precision="int8", int8=tmp_path / "int8.onnx")
    assert quantised.predict([to_bytes(image("red", 7))])[0][0][0] == "red"


def test_int8_that_loses_too_much_is_refused(
    model_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = make_model(tmp_path / "wrong", mirrored=True) / "model.onnx"
    monkeypatch.setattr(tuning, "quantize", lambda *_: wrong)
    monkeypatch.setitem(tuning.TOLERANCE, "int8", 1.0)  # past the smoke images, so that accuracy decides
    found = tune(model_dir, tmp_path, images)
    int8 = next(c for c in found.candidates if c.precision == "int8")
    assert int8.refused is not None and "loses 1.0000 of accuracy" in int8.refused
    assert found.choose("auto", "auto").precision == "fp32"
    with pytest.raises(UserError, match=r"loses 1\.0000 of accuracy"):
        tune(model_dir, tmp_path, images, precision="int8")
    monkeypatch.setitem(tuning.TOLERANCE, "int8", 0.1)
    found = tune(model_dir, tmp_path, images)
    assert "differs from the original" in str(found.candidates[1].refused)


def test_a_small_test_set_means_fp32(model_dir: Path, images: Path, tmp_path: Path) -> None:
    found = tune(model_dir, tmp_path, images, max_accuracy_drop=0.005)
    assert "cannot show" in str(found.candidates[1].refused) and not (tmp_path / "int8.onnx").exists()
    assert found.choose("auto", "auto").name == "onnxruntime fp32"


@pytest.mark.skipif(not is_installed("openvino"), reason="needs openvino")
def test_auto_takes_the_fastest_that_may_serve(
    model_dir: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"onnxruntime": 2.0, "openvino": 1.0}
    monkeypatch.setattr(tuning, "milliseconds", lambda p, **_: speeds[p.session.runtime])
    found = tune(model_dir, tmp_path, images, runtime="auto", precision="fp32")
    assert found.choose("auto", "auto").runtime == "openvino"
    assert found.choose("onnxruntime", "auto").runtime == "onnxruntime"


def live(registry_dir: Path, *overrides: str) -> ModelManager:
    settings = ServiceSettings.of(load_config(overrides), registry_dir=str(registry_dir))
    return ModelManager(settings, Metrics(lambda: 0))


def test_the_service_uses_what_was_found_and_guards_it(model_dir: Path, images: Path, tmp_path: Path) -> None:
    record = put_in_registry(tmp_path, model_dir)
    FolderRegistry(tmp_path).promote(record)
    with pytest.raises(UserError, match="was not measured"):
        live(tmp_path, "serve.precision=int8").follow()
    probe.try_model(
        model_dir,
        images,
        tmp_path,
        accuracy=0.9,
        runtime="onnxruntime",
        precision="auto",
        workers=1,
        max_accuracy_drop=0.1,
        max_pixels=10**7,
    )
    served = live(tmp_path, "serve.precision=int8").follow()
    assert served.predictor.session.precision == "int8"
    assert live(tmp_path, "serve.precision=fp32").follow().predictor.session.precision == "fp32"
    folder = tuned_dir(tmp_path, record.sha256)
    with (folder / "int8.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="missing or damaged"):
        live(tmp_path, "serve.precision=int8").follow()
    found = json.loads((folder / "tuning.json").read_text())
    (folder / "tuning.json").write_text(json.dumps({**found, "machine": "another"}))
    assert live(tmp_path).follow().predictor.session.precision == "fp32"  # speeds and kernels are that machine's


def test_a_model_that_no_longer_gives_its_smoke_answers_is_not_served(
    model_dir: Path, images: Path, tmp_path: Path
) -> None:
    record = put_in_registry(tmp_path, model_dir)
    FolderRegistry(tmp_path).promote(record)
    smoke = tmp_path / "smoke" / f"{record.sha256}.json"
    smoke.parent.mkdir()
    data = to_bytes(image("red", 1))
    smoke.write_text(Smoke([data], [[0.0, 0.0, 1.0]]).dumps())
    models = live(tmp_path)
    with pytest.raises(UserError, match="before deployment: it is not served"):
        models.follow()
    assert models.current is None and models.problem
    smoke.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        models.follow()
