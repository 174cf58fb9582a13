"""Fine-tune a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from objrec.config.environment import AZURE
from objrec.config.schema import Config
from objrec.steps.base import Port, make_step

NUM_OUTLIERS = 200  # drawn images of nothing in particular


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Fine-tune the backbone and export the epoch that was best on the validation images."""
    from objrec.training.fit import fit

    fit(
        config,
        train_dir=inputs["train_dir"],
        valid_dir=inputs["valid_dir"],
        model_dir=outputs["model_dir"],
        calibrate=partial(calibrate, size=config.preprocess.image_size),
    )


def calibrate(logits: Any, targets: Any, predict: Callable[[Any], Any], size: int) -> dict[str, Any]:
    """Fit the temperature and choose the threshold for unknown images on validation data; see ``ModelCard``."""
    from objrec.evaluation.calibration import fit_temperature
    from objrec.evaluation.unknown import choose, outlier_pixels

    temperature = fit_temperature(logits, targets)
    drawn = outlier_pixels(size, NUM_OUTLIERS)
    rule = choose(logits, temperature=temperature, outlier_logits=predict(drawn))
    return {"temperature": temperature, "unknown": rule}


STEP = make_step(
    name="train",
    inputs=(
        Port(name="train_dir"),
        Port(name="valid_dir"),
        Port(name="weights", kind="file", optional=True, config="backbone.weights"),
    ),
    outputs=(Port(name="model_dir"),),
    reads=(
        "backbone",
        "augmentation",
        "optimizer",
        "scheduler",
        "callbacks",
        "logger",
        "compute",
        "train",
        "datamodule",
        "preprocess.image_size",
        "images.max_pixels",
        "runs_dir",
        "cache_dir",
        "seed",
    ),
    secrets=AZURE,
    libraries=(
        "torch",
        "torchvision",
        "timm",
        "lightning",
        "torchmetrics",
        "pillow",
        "pi-heif",
        "simplejpeg",
        "cykooz-resizer",
        "numpy",
        "onnxruntime",
    ),
    compute="gpu",
    resumes=True,
    distributed=True,
)(run)

if __name__ == "__main__":
    from objrec.steps.command import main

    main(STEP)
