"""Images made harder, the same way every time: blur, noise, JPEG and brightness at three strengths."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter

STRENGTHS: Final = (1, 2, 3)
PERTURBATIONS: Final[dict[str, tuple[float, float, float]]] = {
    "blur": (0.01, 0.02, 0.04),  # radius of a Gaussian, as a share of the image's side
    "noise": (12, 25, 50),  # standard deviation of Gaussian noise, of 255
    "jpeg": (40, 15, 6),  # quality
    "brightness": (0.7, 0.45, 0.25),  # factor
}


def perturb(pixels: npt.NDArray[np.uint8], kind: str, strength: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """Return uint8 (size, size, 3) changed by ``kind`` at ``strength`` 1, 2 or 3."""
    amount = PERTURBATIONS[kind][strength - 1]
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0, amount, pixels.shape)
        noisy: npt.NDArray[np.uint8] = (pixels + noise).round().clip(0, 255).astype(np.uint8)
        return noisy
    image = Image.fromarray(pixels)
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(amount * image.width))
    elif kind == "brightness":
        image = ImageEnhance.Brightness(image).enhance(amount)
    else:
        assert kind == "jpeg", kind
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(amount))
        image = Image.open(data).convert("RGB")
    return np.asarray(image)
