"""Before a training: can the backbone be built, computed and exported at this size? It takes seconds, not epochs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from objrec.config.errors import UserError
from objrec.models.backbones import build_backbone, usual_size
from objrec.models.folder import write_onnx

NUM_CLASSES = 3


def check_backbone(options: Mapping[str, Any], image_size: int) -> nn.Module:
    """Return the layers of the backbone without weights. Raises UserError where it cannot be built at this size."""
    with _refused(options, image_size, "cannot be built for"), torch.device("meta"):
        return build_backbone(**options, num_classes=NUM_CLASSES, image_size=image_size)


def rehearse(options: Mapping[str, Any], image_size: int, *, single: bool) -> None:
    """Compute two images with random weights, as in training and as in use, and export.

    Args:
        options: of ``build_backbone``.
        single: whether a training batch may be of one image.

    Raises:
        UserError: with what fails, and the cure.
    """
    _rehearse(tuple(sorted(options.items())), image_size, single)


@lru_cache(64)  # many trainings of one model in a process: a sweep's trials
def _rehearse(options: tuple[tuple[str, Any], ...], image_size: int, single: bool) -> None:
    named = dict(options)
    with torch.random.fork_rng(devices=[]):
        with _refused(named, image_size, "cannot be built for"):
            model = build_backbone(**named, num_classes=NUM_CLASSES, image_size=image_size)
        images = torch.randn(2, 3, image_size, image_size)
        with _refused(named, image_size, "cannot compute"), torch.no_grad():
            shape = tuple(model(images).shape)
        if shape != (2, NUM_CLASSES):
            raise UserError(
                f"backbone.name={named['name']} gives {shape[1:]} numbers for an image, not one for each class"
            )
        if single:
            try:
                with torch.no_grad():
                    model(images[:1])
            except ValueError as error:
                raise UserError(
                    "train.batch_size=1: batch norm needs two images at this size: train.batch_size=2, "
                    "or train.freeze_batch_norm=true with trained weights"
                ) from error
        with _refused(named, image_size, "cannot be exported to ONNX for"), tempfile.TemporaryDirectory() as folder:
            write_onnx(model.eval(), Path(folder) / "model.onnx", images)


@contextlib.contextmanager
def _refused(options: Mapping[str, Any], image_size: int, what: str) -> Iterator[None]:
    """Turn whatever a model raises into a line with the cure. Raises UserError."""
    try:
        with _quiet_exporter():
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # timm's models raise as they like, assertions included
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        usual = usual_size(options["name"])
        cure = f"preprocess.image_size={usual} is what it is made for, " if usual != image_size else "take "
        if options.get("small_input"):
            cure = "try backbone.small_input=false, "
        raise UserError(
            f"backbone.name={options['name']} {what} images of {image_size} px ({reason[:200]}); {cure}"
            f"{'or ' if cure != 'take ' else ''}another backbone"
        ) from error


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter prints the graph that it stumbles on, past Python's streams."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, number)
            os.close(saved)
        os.close(nowhere)
        logging.disable(level)
