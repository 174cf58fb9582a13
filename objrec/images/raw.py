"""The raw images behind a split folder, as its ``split.json`` names them, and short lists of their hashes."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objrec.config.errors import UserError

SHORT = 16  # hex digits of a sha256: among a million images two agree by chance once in 37 million data sets
SETTINGS = ("image_size", "crop", "jpeg_quality")  # what split.json may say of how its images were made


@dataclass(frozen=True)
class RawImages:
    """What a split was made from.

    Attributes:
        fingerprint: over (class, content) of all raw images that were kept, before they were split.
        images: ``<class>/<file>`` of the split folder to the first 16 hex digits of the raw image's sha256.
        settings: a digest of how the split's images were made from them.
        sources: where ingest took them from.
    """

    fingerprint: str
    images: dict[str, str]
    settings: str
    sources: tuple[str, ...] = ()


def read_raw_images(folder: Path, content: str) -> RawImages | None:
    """Return what ``split.json`` says of the raw images, or None where nothing that holds is said.

    Args:
        content: the content fingerprint of the folder; a ``split.json`` that was written for another content is void.
    """
    try:
        summary: Any = json.loads((folder / "split.json").read_bytes())
        fingerprint, images = summary["raw_fingerprint"], summary["images"]
        if summary["fingerprint"] != content or not isinstance(fingerprint, str) or not isinstance(images, dict):
            return None
        if not all(isinstance(digest, str) for digest in images.values()):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # of somebody else, of an older version, or none
    settings = json.dumps({name: summary.get(name) for name in SETTINGS}, sort_keys=True)
    short = {name: digest[:SHORT] for name, digest in images.items()}
    sources = summary.get("sources")  # which splits of older versions lack
    names = tuple(sorted(map(str, sources))) if isinstance(sources, dict) else ()
    return RawImages(fingerprint, short, hashlib.sha256(settings.encode()).hexdigest()[:SHORT], names)


def write_hashes(path: Path, hashes: Iterable[str]) -> None:
    """Write short hashes, one a line, compressed; the same hashes give the same bytes."""
    text = "".join(f"{digest}\n" for digest in sorted(set(hashes)))
    path.write_bytes(gzip.compress(text.encode("ascii"), mtime=0))


def read_hashes(path: Path) -> frozenset[str]:
    """Read what ``write_hashes`` wrote. Raises UserError for a damaged file."""
    try:
        return frozenset(gzip.decompress(path.read_bytes()).decode("ascii").split())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): copy the model folder again, or train again") from None
