"""Bytes that claim to be a picture, checked and decoded to upright RGB."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Final, Literal

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # what web pictures come as; anything else is refused
EXTENSIONS: Final = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
BACKGROUND: Final = (128, 128, 128)  # under transparent pixels: neutral, so that neither dark nor light drawings vanish

Status = Literal["corrupt", "unsupported", "too_large", "too_small"]


class ImageError(ValueError):
    """Bytes that are not a usable picture.

    Attributes:
        status: what a manifest row or an HTTP error says in a word.
        reason: for people.
    """

    def __init__(self, status: Status, reason: str) -> None:
        self.status: Status = status
        self.reason = reason
        super().__init__(f"{status}: {reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[Status, str]]:
        return type(self), (self.status, self.reason)


def decode(data: bytes | Path, *, max_pixels: int, min_size: int = 1, target: int | None = None) -> Image.Image:
    """Decode a picture fully, turn it upright and convert it to RGB.

    Args:
        data: the encoded picture, or a file.
        max_pixels: width x height above which the picture is refused, read from the header before decoding.
        min_size: pixels of the shorter side below which it is refused.
        target: pixels of the shorter side that the caller will resize to. A JPEG may then be decoded at a reduced
            size, still at least twice the target, which costs no visible quality and saves most of the time.

    Returns:
        The first frame, mode RGB, EXIF orientation applied, alpha laid over a neutral grey.

    Raises:
        ImageError: with status ``corrupt``, ``unsupported``, ``too_large`` or ``too_small``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is checked here, and of odd metadata
        try:
            image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", str(error)) from None
        except UnidentifiedImageError:
            raise ImageError("unsupported", f"not a picture in one of {', '.join(FORMATS)}") from None
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ImageError("corrupt", f"header: {error}") from None
        with image:
            _check_size(image, max_pixels=max_pixels, min_size=min_size)
            try:
                if target is not None:
                    image.draft("RGB", (2 * target, 2 * target))
                image.load()  # verify() is not enough: damaged data shows only when it is decoded
                return _to_rgb(ImageOps.exif_transpose(image))
            except MemoryError:
                raise ImageError("too_large", "out of memory while decoding") from None
            except Exception as error:
                raise ImageError("corrupt", str(error) or type(error).__name__) from None


def _check_size(image: Image.Image, *, max_pixels: int, min_size: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too_large", f"{width} x {height} pixels, more than {max_pixels}")
    if min(width, height) < min_size:
        raise ImageError("too_small", f"{width} x {height} pixels, the shorter side is under {min_size}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip at 255 instead of scaling
        import numpy as np

        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(
            (wide / (65535 if wide.max(initial=0) > 255 else 255) * 255).clip(0, 255).astype(np.uint8)
        )
    if image.mode == "F":
        image = image.convert("L")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
