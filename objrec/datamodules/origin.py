"""What a training is trained on, in hashes that outlive crops, splits and file names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from objrec.images.image_folder import Listing, content_fingerprint
from objrec.images.raw import SHORT, read_raw_images


@dataclass(frozen=True)
class Origin:
    """Where training images come from.

    Attributes:
        data: fingerprint of the kept raw images, before split; of ``train_dir`` where nothing is known of raw images.
        split: fingerprint of the raw images that the split put into ``train_dir``.
        settings: a digest of how their crops were made; None where nothing is known of it.
        trained_on: short hashes of the raw images that are trained on, ``train.fraction`` of them.
        sources: where ingest took the raw images from; empty where nothing is known of it.
    """

    data: str
    split: str
    settings: str | None
    trained_on: list[str]
    sources: list[str] = field(default_factory=list)


def find_origin(listing: Listing, chosen: Iterable[int]) -> Origin:
    """Return the origin of the images of ``train_dir``, ``chosen`` of which are trained on."""
    raw = read_raw_images(listing.root, listing.fingerprint)
    if raw is not None and all(name in raw.images for name in listing.names):
        hashes = [raw.images[name] for name in listing.names]
    else:
        hashes = [digest[:SHORT] for digest in listing.sha256]
    return Origin(
        data=listing.fingerprint if raw is None else raw.fingerprint,
        split=content_fingerprint((listing.classes[t], h) for t, h in zip(listing.targets, hashes, strict=True)),
        settings=None if raw is None else raw.settings,
        trained_on=[hashes[i] for i in chosen],
        sources=[] if raw is None else list(raw.sources),
    )
