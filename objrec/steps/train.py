"""Fine-tune a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from objrec.config.schema import Config
from objrec.pipeline.step import Port, make_step


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> None:
    """Fine-tune the backbone and export the epoch that was best on the validation pictures."""
    from objrec.models.training import fit

    fit(config, train_dir=inputs["train_dir"], valid_dir=inputs["valid_dir"], model_dir=outputs["model_dir"])


STEP = make_step(
    name="train",
    inputs=(Port(name="train_dir"), Port(name="valid_dir")),
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
        "images",
        "seed",
    ),
    libraries=("torch", "torchvision", "timm", "lightning", "torchmetrics", "pillow", "numpy", "onnxruntime"),
    compute="gpu",
    resumes=True,
)(run)

if __name__ == "__main__":
    from objrec.pipeline.command import main

    main(STEP)
