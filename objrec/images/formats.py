"""Which formats are read, with which libraries, and what those libraries may print."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Final

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # what cameras and the web make; no other
EXTENSIONS: Final = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "HEIF": "heic",
}
SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"}
)
HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
JPEG_XL: Final = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")


def readable_formats(data: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that may be tried on ``data``; HEIF only where its library is installed."""
    return (*FORMATS, "HEIF") if _is_heif(data) and _has_heif() else FORMATS


def why_unsupported(data: bytes) -> str:
    """Say why no reader takes ``data``, with the cure where there is one."""
    if data.startswith(JPEG_XL):
        return "JPEG XL is not read: save it as PNG or JPEG"
    if _is_heif(data) and not _has_heif():
        return "HEIC is read with an extra: pip install 'objrec[heic]'"
    return f"not an image in one of {', '.join(FORMATS)}, HEIC"


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


@cache
def _has_heif() -> bool:
    """Teach Pillow HEIF, once, when the first such file is seen."""
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener(THUMBNAILS=False, DEPTH_IMAGES=False, AUX_IMAGES=False, DECODE_THREADS=1)
    return True


@cache
def quieten_libtiff() -> None:
    """Stop Pillow's libtiff from writing about damaged files to the terminal, past Python; the errors themselves stay.

    On Linux; elsewhere its lines still appear.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for path in set(re.findall(r"/\S*/libtiff[^/\s]*\.so\S*", maps)):
        try:
            library = ctypes.CDLL(path)
            for setter in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
                function = getattr(library, setter)
                function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
                function(None)
        except (OSError, AttributeError):
            continue
