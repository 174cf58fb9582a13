"""Every image of a test folder through a model, none lost on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from objrec.config.errors import UserError, did_you_mean
from objrec.images.decode import ImageError
from objrec.images.image_folder import Listing, content_fingerprint, list_classes
from objrec.models.card import ModelCard
from objrec.system.cores import available_cores
from objrec.system.progress import report
from objrec.system.reading import read_file, shown

Pixels = npt.NDArray[np.uint8]
Forward = Callable[[Pixels], npt.NDArray[np.float32]]  # uint8 (N, size, size, 3) -> logits (N, classes)
Alter = Callable[[Pixels, str], Pixels]  # uint8 (size, size, 3) and the sha256 of its file -> the same shape
DECODED_AHEAD = 3  # batches: enough that the model never waits for an image, few enough to stay small in memory


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """What a model said to N images, in the order of ``objrec.images.image_folder.list_classes``.

    Attributes:
        classes: the C classes of the model, in the order of its outputs.
        folder: the test folder.
        paths: ``class/name`` of each image.
        sha256: of each file.
        targets: (N,) indices into ``classes``.
        logits: (N, C) float32; rows of unreadable images are zero.
        readable: (N,) False where an image could not be decoded.
        reasons: why, by path.
        others: files that are no images of a class.
    """

    classes: list[str]
    folder: Path
    paths: list[str]
    sha256: list[str]
    targets: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    readable: npt.NDArray[np.bool_]
    reasons: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """The content fingerprint of the test data, as ``objrec.images.image_folder.fingerprint`` computes it."""
        names = (shown(path.split("/")[0]) for path in self.paths)
        return content_fingerprint(zip(names, self.sha256, strict=True))


class Read(NamedTuple):
    """A file: its hash, and its pixels or the reason why there are none."""

    sha256: str
    pixels: Pixels | None
    reason: str | None


def match_classes(split: Listing, card: ModelCard) -> list[int]:
    """Return for each class of ``split`` its index among the model's classes, by name.

    Raises:
        UserError: naming every class that the model does not know.
    """
    index = {name: i for i, name in enumerate(card.class_names)}
    unknown = [name for name in split.classes if name not in index]
    if unknown:
        raise UserError(
            [
                f"test_dir has a class that the model does not know: '{name}'."
                f"{did_you_mean(name, card.class_names, what='it knows')}"
                " Rename the folder, take it away, or keep such images apart and give them as evaluate.unknown_dir"
                for name in unknown
            ]
        )
    return [index[name] for name in split.classes]


def run_model(
    folder: Path, card: ModelCard, forward: Forward, *, batch_size: int, max_pixels: int, alter: Alter | None = None
) -> ModelOutputs:
    """Decode every image of ``folder`` and run the model on it.

    Args:
        alter: changes the pixels before the model sees them.

    Raises:
        UserError: for a missing or empty folder, or classes that the model does not know.
    """
    split = list_classes(folder)
    to_model = match_classes(split, card)
    files = [path for path, _ in split.files]
    sha256: list[str] = []
    readable: list[bool] = []
    logits: list[npt.NDArray[np.float32]] = []
    reasons: dict[str, str] = {}
    for batch in read_images(files, card, batch_size=batch_size, max_pixels=max_pixels, alter=alter):
        report(len(sha256), len(files), "images")
        good = [read.pixels for read in batch if read.pixels is not None]
        rows = np.zeros((len(batch), len(card.class_names)), dtype=np.float32)
        if good:
            rows[[read.pixels is not None for read in batch]] = forward(np.stack(good))
        logits.append(rows)
        for read in batch:
            if read.reason is not None:
                reasons[split.names[len(sha256)]] = read.reason
            sha256.append(read.sha256)
            readable.append(read.pixels is not None)
    return ModelOutputs(
        classes=card.class_names,
        folder=folder,
        paths=split.names,
        sha256=sha256,
        targets=np.array([to_model[target] for _, target in split.files], dtype=np.int64),
        logits=np.concatenate(logits),
        readable=np.array(readable),
        reasons=reasons,
        others=[name for name, _ in split.others],
    )


def read_images(
    files: Sequence[Path], card: ModelCard, *, batch_size: int, max_pixels: int, alter: Alter | None = None
) -> Iterator[list[Read]]:
    """Yield the files in batches, decoded in threads while the caller works on earlier ones."""
    preprocessing = card.preprocessing

    def read(path: Path) -> Read:
        data = read_file(path)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            pixels = preprocessing.pixels(data, max_pixels=max_pixels)
        except ImageError as error:
            return Read(sha256, None, str(error))
        return Read(sha256, pixels if alter is None else alter(pixels, sha256), None)

    with ThreadPoolExecutor(available_cores()) as pool:
        pending: list[list[Future[Read]]] = []
        for start in range(0, len(files), batch_size):
            pending.append([pool.submit(read, path) for path in files[start : start + batch_size]])
            if len(pending) > DECODED_AHEAD:
                yield [future.result() for future in pending.pop(0)]
        for futures in pending:
            yield [future.result() for future in futures]
