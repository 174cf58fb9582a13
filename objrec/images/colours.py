"""Any mode that Pillow decodes to becomes 8-bit RGB, by the declared depth, never by what an image happens to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BACKGROUND: Final = (128, 128, 128)  # under transparent pixels: neutral, so that neither dark nor light drawings vanish
OVERSHOOT: Final = 1.0  # how far floats may leave 0 to 1: resampling overshoots; a scale of 0 to 255 shows at once
BAND: Final = 1 << 20  # pixels that are scaled at once, so that wide samples exist for a part of an image only
IHDR_BITS: Final = 24  # where a PNG says how many bits a sample has
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF


class UndeclaredRange(ValueError):
    """Samples whose black and white the file does not say."""


def to_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Convert a decoded image to mode RGB, transparent parts over ``BACKGROUND``.

    Unsigned samples are scaled by their declared number of bits, floats from 0..1.

    Args:
        data: the file that it was decoded from.

    Raises:
        UndeclaredRange: signed or 32-bit integers, floats far outside 0..1.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return _scaled(image).convert("RGB")
    if (key := image.info.get("transparency")) is not None and image.format == "PNG":
        image.info["transparency"] = _key(image, key, bits=data[IHDR_BITS])
    if image.mode == "La":  # colours multiplied by alpha; Pillow knows one way out
        image = image.convert("LA")
    if {"A", "a"} & set(image.getbands()) or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, BACKGROUND)
        ground.paste(image, mask=image)
        return ground
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Scale 16-bit or float grey to mode L. Raises UndeclaredRange."""
    import numpy as np

    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I":
        bits = max(tags.get(BITS, (32,)))
        raise UndeclaredRange(f"{bits}-bit integers do not say which value is white: save it as 8 or 16 bits, unsigned")
    white = float(2 ** max(tags.get(BITS, (16,))) - 1) if image.mode != "F" else 1.0
    key = image.info.get("transparency")
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        band = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if image.mode == "F" and not (band.min() >= -OVERSHOOT and band.max() <= 1 + OVERSHOOT):  # or not a number
            raise UndeclaredRange("floats outside 0 to 1 do not say which value is white: save it as 8 or 16 bits")
        scaled = _to_bytes(band, white)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns only 8 bits and less
            scaled = 255 - scaled
        if key is not None:
            scaled[band == key] = BACKGROUND[0]
        grey[top : top + rows] = scaled
    return Image.fromarray(grey)


def _to_bytes(samples: npt.NDArray[Any], white: float) -> npt.NDArray[np.uint8]:
    import numpy as np

    scaled = samples.astype(np.float32)
    scaled *= np.float32(255 / white)
    scaled += 0.5
    return scaled.clip(0, 255, out=scaled).astype(np.uint8)


def _key(image: Image.Image, key: Any, bits: int) -> Any:
    """Return the transparent colour of a PNG in 8 bits, as Pillow scaled its pixels; it leaves the key as stored."""
    if isinstance(key, tuple) and bits == 16:
        return tuple(value >> 8 for value in key)
    return key * 255 // (2**bits - 1) if isinstance(key, int) and image.mode == "L" and bits < 8 else key
