"""Images of colour gradients, of any format and size."""

from __future__ import annotations

import io

from PIL import Image


def image(colour: int, size: tuple[int, int] = (80, 50), kind: str = "PNG", **options: object) -> bytes:
    image = Image.linear_gradient("L").resize(size).rotate(colour * 7).convert("RGB")
    image.putpixel((colour % size[0], colour % size[1]), (colour, 255 - colour, 7))
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
