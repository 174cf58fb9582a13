"""A LightningDataModule over split folders, ours or anyone's."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Augmentation, DataModule
from objrec.datamodules.augmentation import BatchAugmentation
from objrec.images.folders import SplitFolder, list_split
from objrec.images.geometry import Preprocessing


@dataclass(frozen=True)
class Draw:
    """Which pictures make a batch, and the seed of its augmentation."""

    indices: list[int]
    seed: int


class BatchSampler(Sampler[Draw]):
    """Batches of a shuffled data set, a function of seed and epoch alone: a resumed epoch has the same batches.

    With several processes each takes every ``world``-th picture of one common order; the last ones are repeated so
    that all have equally many batches.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.count, self.batch_size, self.seed, self.shuffle = count, batch_size, seed, shuffle
        self.rank, self.world = rank, world
        self.epoch = 0
        self.start = 0  # batches of the first pass that are left out: a resumed epoch has seen them

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.count / self.world) / self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.count) if self.shuffle else np.arange(self.count)
        share = np.resize(order, -(-self.count // self.world) * self.world)[self.rank :: self.world]
        done, self.start = self.start, 0
        for i, start in enumerate(range(0, len(share), self.batch_size)):
            draw = Draw(share[start : start + self.batch_size].tolist(), int(random.integers(2**31)) + self.rank)
            if i >= done:
                yield draw


class PictureBatches(Dataset[tuple[Tensor, Tensor, int]]):
    """Batches of a split folder as uint8 (N, 3, size, size) in channels-last order, int64 targets (N,), and a seed."""

    def __init__(self, split: SplitFolder, preprocessing: Preprocessing, *, max_pixels: int, in_memory: bool) -> None:
        self.split = split
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.targets = torch.tensor([target for _, target in split.files])
        self._store = self._decode(range(len(split.files))) if in_memory else None

    def __len__(self) -> int:
        return len(self.split.files)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, int]:
        pixels = self._store[draw.indices] if self._store is not None else self._decode(draw.indices)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), self.targets[draw.indices], draw.seed

    def _decode(self, indices: Any) -> npt.NDArray[np.uint8]:
        size = self.preprocessing.size
        out = np.empty((len(indices), size, size, 3), np.uint8)

        def fill(job: tuple[int, int]) -> None:
            place, index = job
            path = self.split.files[index][0]
            try:
                out[place] = self.preprocessing.pixels(path.read_bytes(), max_pixels=self.max_pixels)
            except ValueError as error:
                raise UserError(f"{path} cannot be used: {error}. Remove it, or run the preprocess step") from None

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoder leaves the interpreter lock
            list(pool.map(fill, enumerate(indices)))
        return out


class ImageFolderDataModule(L.LightningDataModule):
    """Train, valid and test folders of ``<class>/<picture>``.

    Args:
        train_dir, valid_dir, test_dir: any may be None; its loader is then not available.
        preprocessing: size, mean and std that the model expects.
        batch_size: per device.
        augmentation: of training batches.
        settings: caching and workers.

    Raises:
        UserError: a folder is empty or its classes differ from the training classes.
    """

    def __init__(
        self,
        *,
        train_dir: Path,
        valid_dir: Path,
        preprocessing: Preprocessing,
        batch_size: int,
        augmentation: Augmentation,
        settings: DataModule,
        seed: int,
        max_pixels: int,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.augment = BatchAugmentation(augmentation)
        self.settings = settings
        self.seed = seed
        self.max_pixels = max_pixels
        self.folders = {"train": list_split(train_dir), "valid": list_split(valid_dir)}
        self.class_names = self.folders["train"].classes
        if len(self.class_names) < 2:
            raise UserError(f"{train_dir} has pictures of one class only ({self.class_names[0]}): two are needed")
        for name in self.folders["valid"].classes:
            if name not in self.class_names:
                raise UserError(
                    f"{valid_dir} has a class '{name}' that {train_dir} has not.{did_you_mean(name, self.class_names)}"
                )
        self.folders["valid"] = _renumber(self.folders["valid"], self.class_names)
        self._data: dict[str, PictureBatches] = {}
        self._position = {"epoch": 0, "batch": 0}  # where training begins, other than 0 when it is carried on
        constants = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, 1, 3, 1, 1)
        self._mean, self._std = constants * 255

    def setup(self, stage: str | None = None) -> None:
        for name, folder in self.folders.items():
            if name not in self._data:
                self._data[name] = PictureBatches(
                    folder,
                    self.preprocessing,
                    max_pixels=self.max_pixels,
                    in_memory=self._in_memory(len(folder.files)),
                )

    def _in_memory(self, count: int) -> bool:
        size = count * self.preprocessing.size**2 * 3
        return self.settings.cache == "memory" or (self.settings.cache == "auto" and size <= self.settings.cache_limit)

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next training batch; a checkpoint holds it."""
        assert self.trainer is not None
        done = int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        ended = done >= self.trainer.num_training_batches
        return {"epoch": self.trainer.current_epoch + ended, "batch": 0 if ended else done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._position = state_dict

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self._loader("train", shuffle=True)
        sampler: Any = loader.sampler  # worker processes begin to read before the Trainer tells the epoch
        sampler.epoch, sampler.start = self._position["epoch"], self._position["batch"]
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("valid", shuffle=False)

    def _loader(self, name: str, *, shuffle: bool) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        data = self._data[name]
        sampler = BatchSampler(len(data), self.batch_size, seed=self.seed, shuffle=shuffle, rank=rank, world=world)
        return DataLoader(
            data,
            batch_size=None,  # the sampler draws whole batches: one indexing operation each
            sampler=sampler,
            num_workers=self.settings.num_workers,
            persistent_workers=self.settings.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalise on the device, and augment while training: float32 (N, 3, H, W), int64 (N,)."""
        images, targets, seed = batch
        images = (images.float() - self._mean.to(images.device)) / self._std.to(images.device)
        if self.trainer is not None and self.trainer.training:
            images = self.augment(images, torch.Generator().manual_seed(int(seed)))
        return images, targets


def _renumber(split: SplitFolder, class_names: list[str]) -> SplitFolder:
    """Count classes as ``class_names`` does: a split may lack some of them."""
    index = [class_names.index(name) for name in split.classes]
    return SplitFolder(list(class_names), [(path, index[target]) for path, target in split.files], split.others)
