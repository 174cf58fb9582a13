"""Batches of uint8 images: from memory, from a decoded store, or from the files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from objrec.config.errors import UserError
from objrec.datamodules.crops import Pixels, RandomResizedCrop, resize_into
from objrec.datamodules.sampling import Draw
from objrec.images.decode import ImageError
from objrec.images.preprocessing import Preprocessing
from objrec.system.cores import available_cores
from objrec.system.reading import read_file


class Batch(NamedTuple):
    """Images as they are loaded: not yet augmented, not yet normalised.

    Attributes:
        images: uint8 (N, 3, size, size), channels last in memory.
        targets: int64 (N,); None for images to predict.
        indices: (N,) of the images in their data set.
        epoch, seed: of the draw; see ``Draw``.
    """

    images: Tensor
    targets: Tensor | None
    indices: npt.NDArray[np.int64]
    epoch: int
    seed: int | None


class ImageReader(Protocol):
    """Anything that holds images: ``source[i]`` is uint8 (side, side, 3)."""

    def __getitem__(self, index: Any, /) -> Pixels: ...


class Files:
    """Images decoded from their files every time they are asked for."""

    def __init__(self, names: list[str], root: Path, preprocessing: Preprocessing, *, max_pixels: int) -> None:
        self.names, self.root = names, root
        self.preprocessing, self.max_pixels = preprocessing, max_pixels

    def __getitem__(self, index: int) -> Pixels:
        path = self.root / self.names[index]
        try:
            return self.preprocessing.pixels(read_file(path), max_pixels=self.max_pixels)
        except ImageError as error:
            raise UserError(f"{path} cannot be used: {error}. Remove it, or run the preprocess step") from None

    def decode(self, indices: range) -> Pixels:
        """Decode a range on all cores: uint8 (N, size, size, 3)."""
        size = self.preprocessing.size
        out = np.empty((len(indices), size, size, 3), np.uint8)

        def fill(place: int) -> None:
            out[place] = self[indices[place]]

        with ThreadPoolExecutor(available_cores()) as pool:  # the decoder leaves the interpreter lock
            deque(pool.map(fill, range(len(indices))), maxlen=0)
        return out


class ImageBatches(Dataset[Batch]):
    """Batches drawn from a source.

    Args:
        side: pixels of the source's squares.
        size: pixels of the batch's squares; smaller than ``side`` only where images are cropped.
        targets: class of each image; None for images to predict.
        crop: applied to images of a draw with a seed.
    """

    def __init__(
        self,
        source: ImageReader,
        *,
        side: int,
        size: int,
        targets: npt.NDArray[np.int64] | None,
        crop: RandomResizedCrop | None = None,
    ) -> None:
        self.source, self.side, self.size, self.targets, self.crop = source, side, size, targets, crop

    def __getitem__(self, draw: Draw) -> Batch:
        """Make a batch in the calling thread."""
        batch, fill = self.prepare(draw)
        fill(range(len(draw.indices)))
        return batch

    def prepare(self, draw: Draw) -> tuple[Batch, Callable[[range], None]]:
        """Return a batch whose images are still to come, and what fills the given places of it, from any thread."""
        indices = np.asarray(draw.indices)
        pixels = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        boxes = None
        if self.crop is not None and draw.seed is not None:
            boxes = self.crop.boxes(len(indices), self.side, draw.seed)

        def fill(places: range) -> None:
            for place in places:
                image = self.source[draw.indices[place]]
                if boxes is not None:
                    left, top, right, bottom = boxes[place]
                    image = image[top:bottom, left:right]
                resize_into(pixels[place], image)

        targets = None if self.targets is None else torch.from_numpy(self.targets[indices])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return Batch(images, targets, indices, draw.epoch, draw.seed), fill


class ThreadedLoader:
    """Make batches in threads: what takes time (decoding, resizing, reading) leaves the interpreter lock.

    Args:
        threads: that work on the images of a batch.
        ahead: batches that are made while the caller works on earlier ones.
        pin: put batches where a GPU can fetch them from.
    """

    def __init__(self, data: ImageBatches, sampler: Sampler[Draw], *, threads: int, ahead: int, pin: bool) -> None:
        self.data, self.sampler = data, sampler
        self.batch_sampler = None  # Lightning looks for both, to set their epoch
        self.threads, self.ahead, self.pin = threads, ahead, pin

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads, "images")
        begun: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for draw in self.sampler:
                batch, fill = self.data.prepare(draw)
                n = len(draw.indices)
                step = -(-n // (2 * self.threads))  # two parts for each: who is done early takes one more
                begun.append((batch, [pool.submit(fill, range(s, min(s + step, n))) for s in range(0, n, step)]))
                if len(begun) > self.ahead:
                    yield self._finished(*begun.popleft())
            while begun:
                yield self._finished(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _finished(self, batch: Batch, parts: list[Future[None]]) -> Batch:
        for part in parts:
            part.result()
        if not self.pin:
            return batch
        targets = None if batch.targets is None else batch.targets.pin_memory()
        return batch._replace(images=batch.images.pin_memory(), targets=targets)


def make_loader(
    data: ImageBatches, sampler: Sampler[Draw], *, processes: int, threads: int, ahead: int, pin: bool
) -> ThreadedLoader | DataLoader[Batch]:
    """Return a loader of batches: of worker processes where some are asked for, of threads otherwise."""
    if not processes:
        return ThreadedLoader(data, sampler, threads=threads, ahead=ahead, pin=pin)
    return DataLoader(
        data,
        batch_size=None,  # the sampler draws whole batches
        sampler=sampler,
        num_workers=processes,
        prefetch_factor=max(2, ahead),
        persistent_workers=True,
        pin_memory=pin,
    )
