"""The model folder: weights, ONNX, card and config, written at the end of training and checked."""

from __future__ import annotations

import contextlib
import subprocess
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from objrec.config.environment import child_environment
from objrec.images.raw import write_hashes
from objrec.models.backbones import build_backbone
from objrec.models.card import FILES, TRAINED_ON, ModelCard
from objrec.system.files import file_sha256, permit

TOLERANCE = 1e-3  # of logits, ONNX Runtime against torch, both float32 on a CPU
LIBRARIES = ("torch", "torchvision", "timm", "lightning", "onnxruntime", "objrec")


def save_model_folder(
    folder: Path,
    model: nn.Module,
    *,
    images: Tensor,
    config: dict[str, Any],
    trained_on: Iterable[str] = (),
    **card: Any,
) -> ModelCard:
    """Write ``model.safetensors``, ``model.onnx`` (checked), ``trained_on.txt.gz``, ``model.json`` and ``config.yaml``.

    Args:
        model: trained, float32 on the CPU, in evaluation mode.
        images: float (N, 3, size, size) validation images, normalised: the ONNX model must agree on them.
        config: resolved.
        trained_on: short hashes of the raw images of the training, see ``objrec.images.raw``.
        card: the remaining fields of ``ModelCard``.

    Raises:
        RuntimeError: the ONNX model differs from the original.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    export_onnx(model, folder / "model.onnx", images)
    for name in FILES:  # safetensors makes it for its owner alone
        permit(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=True, allow_unicode=True))
    write_hashes(folder / TRAINED_ON, trained_on)
    names = ("model.safetensors", "model.onnx", TRAINED_ON)
    result = ModelCard(
        git_commit=git_commit(),
        versions={name: v for name in LIBRARIES if (v := _version(name))},
        files={name: file_sha256(folder / name) for name in names},
        **card,
    )
    result.save(folder)
    return result


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Load the torch model of a folder in evaluation mode. Raises UserError for a damaged folder."""
    from safetensors.torch import load_file

    card = ModelCard.load(folder)
    card.verify(folder)
    model = build_backbone(**card.backbone, num_classes=len(card.class_names), image_size=card.input_size)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), card


def export_onnx(model: nn.Module, path: Path, images: Tensor) -> None:
    """Write ``model`` as ONNX (input ``input``: float32 (N, 3, H, W), output ``logits``) and compare on ``images``."""
    found = write_onnx(model, path, images)
    with torch.inference_mode():
        expected = model(images).numpy()
    difference = float(np.abs(found - expected).max())
    if difference > TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise RuntimeError(f"the ONNX model differs from the original by {difference:.2g} in a logit")


def write_onnx(model: nn.Module, path: Path, images: Tensor) -> Any:
    """Write ``model`` as ONNX and return its logits of ``images``: float32 (N, classes). Raises what torch raises."""
    with warnings.catch_warnings():
        # the exporter based on TorchScript is deprecated: 10 times faster, equal results
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images[:1],),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
            dynamo=False,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images.numpy()})
    return found


def git_commit() -> str | None:
    """Return the commit of the current folder's checkout, or None outside one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env=child_environment(),
        )
        return done.stdout.strip()
    return None


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None
