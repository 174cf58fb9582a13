"""Images as Python code holds them, as encoded bytes or paths: then all of them go the one way to a model."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    ImageLike = str | os.PathLike[str] | bytes | bytearray | IO[bytes] | Image.Image | npt.NDArray[np.uint8]


def is_one(images: Any) -> bool:
    """Whether this is one image, and not several."""
    if isinstance(images, (str, os.PathLike, bytes, bytearray)) or hasattr(images, "read"):
        return True
    return len(images.shape) <= 3 if hasattr(images, "shape") else hasattr(images, "mode")


def encoded(image: Any) -> bytes | Path:
    """Return an image as bytes of a format, or as the path of a file. Raises ImageError for what is neither."""
    from objrec.images.decode import ImageError

    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise ImageError("unsupported", "a file should be opened as binary: open(path, 'rb')")
        return data
    if hasattr(image, "shape"):
        return _of_array(image)
    if hasattr(image, "mode"):
        return _of_pillow(image)
    raise ImageError("unsupported", f"not an image: {type(image).__name__}")


def _of_array(array: Any) -> bytes:
    from PIL import Image

    from objrec.images.decode import ImageError

    shape = tuple(array.shape)
    if str(array.dtype) != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise ImageError(
            "unsupported",
            f"an array should be uint8 of shape (height, width) or (height, width, 3 or 4), got {array.dtype} {shape}",
        )
    return _of_pillow(Image.fromarray(array))


def _of_pillow(image: Any) -> bytes:
    """Encode without loss and hardly compressed: what a file of the same pixels would be decoded to."""
    from PIL import ImageOps

    from objrec.images.decode import ImageError

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
            image = image.convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=0)
    except Exception as error:  # a lazily loaded file that is damaged
        raise ImageError("corrupt", str(error) or type(error).__name__) from None
    return buffer.getvalue()
