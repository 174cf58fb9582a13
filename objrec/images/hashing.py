"""Fingerprints of pictures."""

from __future__ import annotations

from PIL import Image


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit difference hash: is each of 8 x 8 cells darker than its right neighbour?

    Source: N. Krawetz, "Kind of Like That", 2013. Pictures that differ by scale or compression differ in a few bits.
    """
    import numpy as np

    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")
