"""Measure on test images."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from objrec.config.environment import AZURE
from objrec.config.schema import Config
from objrec.steps.base import Port, make_step
from objrec.system.cores import available_cores

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # telling by torch would take seconds where there is none
ACCURACY_KEYS = (
    "accuracy",
    "num_images",
    "num_unreadable",
    "confidence_interval",
    "test_data_fingerprint",
    "model_sha256",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "top_k",
    "log_loss",
    "ece",
    "temperature",
)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Measure the model on test images and write the accuracy and a report."""
    from objrec.evaluation.evaluate import EvaluationSettings, conduct
    from objrec.evaluation.heatmaps import make_explainer
    from objrec.evaluation.report import write_report
    from objrec.inference.predictor import Predictor
    from objrec.models.card import ModelCard
    from objrec.system.files import write_json

    runtime = choose_runtime(config.compute.runtime, config.compute.accelerator)
    # a thread an image wastes less than threads that wait for each other at every layer
    load = partial(Predictor.load, runtime=runtime, threads=1, workers=available_cores())
    preprocessing = ModelCard.load(inputs["model_dir"]).preprocessing
    settings = EvaluationSettings(
        batch_size=config.evaluate.batch_size,
        max_pixels=config.images.max_pixels,
        near_duplicate_bits=config.images.near_duplicate_bits,
        slices=config.evaluate.slices,
        robustness=config.evaluate.robustness,
    )
    with ThreadPoolExecutor(1) as aside:  # while only one core is busy; the model is at hand when images are explained
        explainer = aside.submit(
            make_explainer, inputs["model_dir"], preprocessing, lambda pixels: model.logits(pixels)
        )
        model: Predictor = load(inputs["model_dir"])
        study = conduct(
            model,
            inputs["test_dir"],
            settings,
            train_dir=inputs.get("train_dir"),
            raw_data_dir=inputs.get("raw_data_dir"),
            unknown_dir=inputs.get("unknown_dir"),
            other=load(inputs["compare_dir"]) if "compare_dir" in inputs else None,
        )
        write_report(
            study,
            explainer.result,
            outputs["report_dir"],
            model_dir=inputs["model_dir"],
            train_dir=inputs.get("train_dir"),
            max_pixels=config.images.max_pixels,
        )
    write_json(outputs["accuracy_file"], {key: study.metrics[key] for key in ACCURACY_KEYS})


def choose_runtime(asked: str, accelerator: str) -> str:
    """Return ``onnxruntime`` or ``torch``; ``auto`` means torch where its start-up time pays: with an NVIDIA GPU."""
    if asked != "auto":
        return asked
    return "torch" if accelerator in ("auto", "gpu") and NVIDIA_DRIVER.exists() else "onnxruntime"


STEP = make_step(
    name="evaluate",
    inputs=(
        Port(name="model_dir"),
        Port(name="test_dir"),
        Port(name="train_dir", optional=True),
        Port(name="raw_data_dir", optional=True),
        Port(name="compare_dir", optional=True, config="evaluate.compare"),
        Port(name="unknown_dir", optional=True, config="evaluate.unknown_dir"),
    ),
    outputs=(Port(name="accuracy_file", kind="file"), Port(name="report_dir")),
    reads=("evaluate", "images", "compute.runtime", "compute.accelerator"),
    secrets=AZURE,
    libraries=("numpy", "onnx", "onnxruntime", "pi-heif", "pillow", "simplejpeg", "cykooz-resizer"),
    compute="gpu",
)(run)

if __name__ == "__main__":
    from objrec.steps.command import main

    main(STEP)
