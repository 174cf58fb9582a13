"""An image of the first training batch, as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt

from objrec.images.preprocessing import Preprocessing
from objrec.system.files import atomic_file

COLUMNS, ROWS = 8, 4
CELL = 112  # pixels of an image in the grid
LINE = 15  # pixels of a line of text


class FirstBatch(L.Callback):
    """Draw ``batch.png``, once a run: the first training batch, augmented, with its targets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step or not trainer.is_global_zero or self.path.exists():
            return
        data = trainer.datamodule
        images, targets = (part[: COLUMNS * ROWS].detach().float().cpu().numpy() for part in batch)
        draw_batch(self.path, denormalize(images, data.preprocessing), targets, data.class_names)


def denormalize(images: npt.NDArray[np.float32], preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Turn normalised (N, 3, H, W) back into uint8 (N, H, W, 3)."""
    mean, std = (255 * np.asarray(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    return (images.transpose(0, 2, 3, 1) * std + mean).round().clip(0, 255).astype(np.uint8)


def draw_batch(
    path: Path, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.float32], class_names: Sequence[str]
) -> None:
    """Draw a grid of images over their targets: (N,) indices of classes, or (N, C) shares of the two largest."""
    from PIL import Image, ImageDraw, ImageFont

    labels = [label(target, class_names) for target in targets]
    lines = max(text.count("\n") for text in labels) + 1
    width, height = CELL + 8, CELL + 8 + LINE * lines
    columns = min(COLUMNS, len(pixels))
    sheet = Image.new("RGB", (columns * width, -(-len(pixels) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, (image, text) in enumerate(zip(pixels, labels, strict=True)):
        left, top = i % columns * width + 4, i // columns * height + 4
        sheet.paste(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        draw.multiline_text((left, top + CELL + 1), text, fill="black", font=font, spacing=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        sheet.save(file, "PNG")


def label(target: npt.NDArray[np.float32], class_names: Sequence[str], longest: int = 13) -> str:
    """Write a target: a name, or a line with a share for each of the two classes that a mixed image shows."""
    names = [name if len(name) <= longest else name[: longest - 1] + "…" for name in class_names]
    if target.ndim == 0:
        return names[int(target)]
    two = [c for c in np.argsort(-target)[:2] if target[c] >= 0.005]
    return "\n".join(f"{names[c]} {target[c]:.2f}" for c in two)
