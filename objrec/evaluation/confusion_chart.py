"""Images of a report, drawn with Pillow alone: importing a plotting library takes longer than the whole drawing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, FULL = (28, 32, 38), (255, 255, 255), (11, 87, 208)


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans where matplotlib brought it (it knows more scripts than Pillow's own), else Pillow's own."""
    spec = find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont), "Pillow's wheels come with FreeType"
    return own


def draw_confusion_matrix(matrix: npt.NDArray[np.int64], classes: Sequence[str]) -> Image.Image:
    """Draw (C, C + 1) counts, rows = targets; a cell is as dark as its share of the row.

    The last column (unreadable) is drawn only where it is not empty. Counts are written where they fit.
    """
    columns = list(classes)
    if matrix[:, -1].any():
        columns.append("(unreadable)")
    counts = matrix[:, : len(columns)]
    cell = max(14, min(56, 1100 // len(columns)))
    text = font(max(9, min(16, cell * 5 // 8)))
    margin = 12 + max(int(text.getlength(_short(name))) for name in columns)
    head = 2 * round(text.size)
    width, height = margin + head + cell * len(columns) + 12, margin + head + cell * len(classes) + 12
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    left, top = margin + head, margin + head
    shares = counts / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for y in range(len(classes)):
        for x in range(len(columns)):
            share = float(shares[y, x]) ** 0.6  # so that a few confusions in a hundred can still be seen
            box = (left + x * cell, top + y * cell, left + (x + 1) * cell - 2, top + (y + 1) * cell - 2)
            ground = tuple(round(246 + (f - 246) * share) for f in FULL)
            draw.rectangle(box, fill=ground)
            number = str(counts[y, x])
            if counts[y, x] and text.getlength(number) < cell - 3:
                middle = (box[0] + cell / 2 - 1, box[1] + cell / 2 - 1)
                draw.text(middle, number, PAPER if share > 0.5 else INK, font=text, anchor="mm")
    for y, name in enumerate(classes):
        draw.text((left - 6, top + y * cell + cell / 2), _short(name), INK, font=text, anchor="rm")
    for x, name in enumerate(columns):
        _draw_upward(image, (left + x * cell + cell // 2, top - 6), _short(name), text)
    draw.text((left + cell * len(columns) / 2, 4), "predicted", INK, font=text, anchor="mt")
    _draw_upward(image, (4 + head // 4, top + cell * len(classes) // 2 + 30), "target", text)
    return image


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _draw_upward(image: Image.Image, foot: tuple[int, int], name: str, text: ImageFont.FreeTypeFont) -> None:
    strip = Image.new("L", (int(text.getlength(name)) + 2, int(text.size * 1.5)), 0)
    ImageDraw.Draw(strip).text((0, strip.height / 2), name, 255, font=text, anchor="lm")
    turned = strip.rotate(90, expand=True)
    image.paste(INK, (foot[0] - turned.width // 2, foot[1] - turned.height), turned)
