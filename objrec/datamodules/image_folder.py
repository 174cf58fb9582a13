"""A LightningDataModule over split folders, ours or the user's own."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from objrec.config.errors import UserError, did_you_mean
from objrec.config.schema import Augmentation, DataModule
from objrec.datamodules.augmentation import BatchAugmentation
from objrec.datamodules.crops import RandomResizedCrop
from objrec.datamodules.loading import Batch, Files, ImageBatches, ImageReader, make_loader
from objrec.datamodules.origin import Origin, find_origin
from objrec.datamodules.sampling import BatchSampler, Draw, InOrder, stratified_share
from objrec.datamodules.store import open_store, store_key
from objrec.images.image_folder import Listing, list_classes, list_images
from objrec.images.preprocessing import Preprocessing
from objrec.system.cores import available_cores

Split = Literal["train", "valid", "test", "predict"]
Cache = Literal["memory", "disk", "off"]


class ImageFolderDataModule(L.LightningDataModule):
    """Train, valid and test folders of ``<class>/<image>``, and any folder of images to predict.

    Args:
        train_dir, valid_dir, test_dir: split folders; the classes are those of ``train_dir``.
        predict_dir: images, in subfolders or not; their batches have no targets.
        preprocessing: what the model expects of an image.
        batch_size: per device.
        augmentation: of training batches.
        settings: caching, sampling and workers.
        fraction: share of the training images of each class that is used.
        cache_dir: for decoded stores and remembered hashes; None: neither is kept, and ``disk`` means ``memory``.

    Raises:
        UserError: a folder is empty, or has classes that training has not.
    """

    def __init__(
        self,
        *,
        train_dir: Path,
        valid_dir: Path,
        test_dir: Path | None = None,
        predict_dir: Path | None = None,
        preprocessing: Preprocessing,
        batch_size: int,
        augmentation: Augmentation,
        settings: DataModule,
        seed: int,
        max_pixels: int,
        fraction: float = 1.0,
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.settings = settings
        self.seed = seed
        self.max_pixels = max_pixels
        self.cache_dir = cache_dir
        whole = list_classes(train_dir, cache_dir)
        self.class_names = whole.classes
        if len(self.class_names) < 2:
            raise UserError(f"{train_dir} has only one class ({self.class_names[0]}); at least two are needed")
        self._whole = whole
        self.listings: dict[str, Listing] = {"train": whole}
        for name, folder in (("valid", valid_dir), ("test", test_dir)):
            if folder is not None:
                self.listings[name] = _numbered_as(list_classes(folder, cache_dir), self.class_names)
        if predict_dir is not None:
            self.listings["predict"] = list_images(predict_dir)
        self._chosen = stratified_share(whole.names, whole.targets, fraction)
        self.train_targets: npt.NDArray[np.int64] = whole.targets[self._chosen]
        fill = [round(255 * m) for m in preprocessing.mean]
        self.augment = BatchAugmentation(augmentation, fill=fill, num_classes=len(self.class_names))
        crops = augmentation.name != "none" and augmentation.scale is not None and augmentation.ratio is not None
        self._crop = RandomResizedCrop(augmentation.scale, augmentation.ratio) if crops else None  # type: ignore[arg-type]
        self._data: dict[str, ImageBatches] = {}
        self._position = {"epoch": 0, "batch": 0}  # where training begins, other than 0 when it resumes

    @property
    def fingerprint(self) -> str:
        """The content fingerprint of ``train_dir``, all of it; see ``objrec.images.image_folder.fingerprint``."""
        return self._whole.fingerprint

    @property
    def origin(self) -> Origin:
        """The raw images behind ``train_dir``, and which of them are trained on."""
        return find_origin(self._whole, self._chosen.tolist())

    @cached_property
    def class_counts(self) -> npt.NDArray[np.int64]:
        """How many training images each class has, (C,)."""
        return np.bincount(self.train_targets, minlength=len(self.class_names))

    def setup(self, stage: str | None = None) -> None:
        wanted = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), "predict": ("predict",)}
        for name in wanted.get(stage or "fit", ()):
            self._batches(name)

    def _batches(self, name: str) -> ImageBatches:
        if name not in self.listings:
            raise UserError(f"{name}_dir is needed: give a folder of images")
        if name not in self._data:
            self._data[name] = self._prepare(name, self.listings[name])
        return self._data[name]

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next training batch; a checkpoint holds it."""
        assert self.trainer is not None
        done = int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        ended = done >= self.trainer.num_training_batches
        return {"epoch": self.trainer.current_epoch + ended, "batch": 0 if ended else done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._position = state_dict

    def _prepare(self, name: str, listing: Listing) -> ImageBatches:
        preprocessing, crop = self.preprocessing, None
        if name == "train":
            crop = self._crop
            if crop is not None:  # random boxes are cut from the whole square
                size = max(self.settings.store_size or 0, preprocessing.size)
                preprocessing = replace(preprocessing, size=size, crop_pct=1.0)
        chosen = self._chosen if name == "train" else np.arange(len(listing.names))
        source = self._source(listing, chosen, preprocessing, keep=name != "predict")
        targets = listing.targets[chosen] if name != "predict" else None
        return ImageBatches(source, side=preprocessing.size, size=self.preprocessing.size, targets=targets, crop=crop)

    def _source(
        self, listing: Listing, chosen: npt.NDArray[np.int64], preprocessing: Preprocessing, *, keep: bool
    ) -> ImageReader:
        files = Files([listing.names[i] for i in chosen], listing.root, preprocessing, max_pixels=self.max_pixels)
        count, size = len(chosen), preprocessing.size
        cache = self._cache(count * size * size * 3) if keep else "off"
        if cache == "off":
            return files
        if cache == "memory" or self.cache_dir is None:
            return files.decode(range(count))
        content = f"{listing.identity} {hashlib.sha256(chosen.tobytes()).hexdigest()}"
        return open_store(
            self.cache_dir / "decoded",
            store_key(content, preprocessing),
            count=count,
            size=size,
            decode=files.decode,
            limit=self.settings.disk_limit,
        )

    def _cache(self, size: int) -> Cache:
        """Where ``size`` bytes of decoded images are kept."""
        if self.settings.cache != "auto":
            return self.settings.cache
        if size <= self.settings.cache_limit:
            return "memory"
        if self.cache_dir is None or size > self.settings.disk_limit:
            return "off"
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        return "disk" if size < 0.9 * shutil.disk_usage(self.cache_dir).free else "off"

    def train_dataloader(self) -> Any:
        """Batches of an epoch, shuffled or balanced; see ``Batch``."""
        data = self._batches("train")
        rank, world = self._rank_and_world()
        sampler = BatchSampler(
            self.train_targets,
            self.batch_size,
            seed=self.seed,
            balanced=self.settings.sampler == "balanced",
            rank=rank,
            world=world,
        )
        # worker processes begin to read before the Trainer sets the epoch
        sampler.epoch, sampler.start = self._position["epoch"], self._position["batch"]
        return self._loader(data, sampler)

    def val_dataloader(self) -> Any:
        return self._in_order("valid")

    def test_dataloader(self) -> Any:
        return self._in_order("test")

    def predict_dataloader(self) -> Any:
        return self._in_order("predict")

    def _in_order(self, name: Split) -> Any:
        data = self._batches(name)
        rank, world = self._rank_and_world()
        count = len(self.listings[name].names)
        return self._loader(data, InOrder(count, self.batch_size, rank=rank, world=world))

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, data: ImageBatches, sampler: Any) -> Any:
        """Threads, or processes where a number of workers is asked for.

        On a GPU, batches are made ahead of the steps, by all cores that the node's processes share. On a CPU nothing
        is gained by that, and threads of two pools that wait for each other's cores lose much: the cores take turns
        at making a batch and at a step.
        """
        on_gpu = torch.cuda.is_available() and (
            self.trainer is None or self.trainer.strategy.root_device.type == "cuda"
        )
        share = max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        workers = self.settings.num_workers
        return make_loader(
            data,
            sampler,
            processes=workers if isinstance(workers, int) else 0,
            threads=share,
            ahead=2 if on_gpu else 0,
            pin=on_gpu,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment training batches and normalise, on the device.

        Returns:
            float32 images (N, 3, H, W), and targets: int64 (N,), or float32 (N, classes) where images are mixed.
            Images alone where images have no targets.
        """
        if not isinstance(batch, Batch):
            return batch
        images, targets = batch.images, batch.targets
        if batch.seed is not None and targets is not None:
            images, targets = self.augment(images, targets, indices=batch.indices, epoch=batch.epoch, seed=batch.seed)
        normalised = self.normalize(images)
        return normalised if targets is None else (normalised, targets)

    def sample(self, split: Split, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield up to ``count`` images from all over a split as the model sees them without augmentation.

        Returns:
            Batches of float32 (N, 3, H, W) and int64 (N,) targets.
        """
        data = self._batches(split)
        assert data.targets is not None
        count = min(count, len(data.targets))
        chosen = np.linspace(0, len(data.targets) - 1, count).astype(int)
        for part in np.array_split(chosen, -(-count // self.batch_size)):
            batch = data[Draw(part.tolist())]
            assert batch.targets is not None
            yield self.normalize(batch.images), batch.targets

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 (N, 3, H, W) into what ``Preprocessing.normalize`` makes of it, channels last in memory.

        Rows of all channels are long enough for the processor's vectors; three values at a time are not, and take
        five times as long.
        """
        n, channels, height, width = images.shape
        mean, std = np.asarray(self.preprocessing.mean), np.asarray(self.preprocessing.std)
        scale, shift = (
            torch.from_numpy(np.tile(v.astype(np.float32), width)).to(images.device)
            for v in (1 / (255 * std), -mean / std)
        )
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels)
        return rows.float().mul_(scale).add_(shift).view(n, height, width, channels).permute(0, 3, 1, 2)


def _numbered_as(listing: Listing, class_names: list[str]) -> Listing:
    """Count classes as ``class_names`` does: a split may lack some of them."""
    for name in listing.classes:
        if name not in class_names:
            raise UserError(
                f"{listing.root} has a class '{name}' that the training data has not.{did_you_mean(name, class_names)}"
            )
    index = np.array([class_names.index(name) for name in listing.classes])
    return replace(listing, classes=list(class_names), targets=index[listing.targets])
