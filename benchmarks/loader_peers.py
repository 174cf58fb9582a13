"""One loader of training batches in a process of its own; ``benchmarks/loader.py`` starts it and says when to go.

    python benchmarks/loader_peers.py NAME FOLDER SCRATCH SIZE WORKERS [MODULE to import]

Every one of them gives the same thing: batches of 64 shuffled count, cut by RandomResizedCrop with the usual ranges,
half of them mirrored, normalised to float32. Each line read is answered by an epoch: count, seconds.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

Epoch = Callable[[], Iterable[Any]]  # float32 images (N, 3, size, size)


def objrec_store(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    return _objrec(folder, scratch, size, "disk")


def objrec_files(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    return _objrec(folder, scratch, size, "off")


def _objrec(folder: Path, scratch: Path, size: int, cache: str) -> Epoch:
    from objrec.config.load import load_config
    from objrec.datamodules.image_folder import ImageFolderDataModule
    from objrec.images.preprocessing import Preprocessing

    options = [f"datamodule.cache={cache}", "datamodule.store_size=256"]
    config = load_config(["augmentation=flip_crop", "augmentation.scale=[0.08,1.0]", *options])
    data = ImageFolderDataModule(
        train_dir=folder,
        valid_dir=folder,
        preprocessing=Preprocessing(size=size, mean=MEAN, std=STD),
        batch_size=BATCH,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=0,
        max_pixels=10**8,
        cache_dir=scratch / "objrec",
    )
    loader = data.train_dataloader()
    return lambda: (data.on_after_batch_transfer(batch, 0)[0] for batch in loader)


def torchvision_imagefolder(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision import transforms as t
    from torchvision.datasets import ImageFolder

    crop = [t.RandomResizedCrop(size, SCALE, RATIO), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(MEAN, STD)]
    data = ImageFolder(str(folder), t.Compose(crop))
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda: (images for images, _ in loader)


def timm(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        no_aug=False,
        scale=SCALE,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=workers,
    )
    return lambda: (images for images, _ in loader)


def _litdata_sample(path: str) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(path)}  # kept as the bytes of the file


class _OfSample:
    """What litdata's worker processes, which are spawned, can be sent."""

    def __init__(self, crop: Callable[[Any], Any]) -> None:
        self.crop = crop

    def __call__(self, sample: dict[str, Any]) -> Any:
        return self.crop(sample["image"])


def litdata(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    import litdata as ld
    import torch
    from torchvision.transforms import v2

    chunks = scratch / "litdata"
    if not chunks.exists():
        files = sorted(map(str, folder.rglob("*.jpg")))
        ld.optimize(_litdata_sample, inputs=files, output_dir=str(chunks), chunk_bytes="64MB", num_workers=workers)
    crop = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(size, SCALE, RATIO, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    loader = ld.StreamingDataLoader(
        ld.StreamingDataset(str(chunks), shuffle=True, transform=_OfSample(crop)),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=True,
    )
    return lambda: loader


def dali(folder: Path, scratch: Path, size: int, workers: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    @pipeline_def
    def crops() -> Any:
        files, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, name="files")
        images = fn.decoders.image_random_crop(files, random_area=SCALE, random_aspect_ratio=RATIO)
        images = fn.resize(images, size=(size, size))
        normalised = fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
        )
        return normalised, labels

    pipeline = crops(batch_size=BATCH, num_threads=workers, device_id=None)
    pipeline.build()
    loader = DALIGenericIterator(
        [pipeline],
        ["images", "labels"],
        reader_name="files",
        auto_reset=True,
        last_batch_policy=LastBatchPolicy.PARTIAL,
    )
    return lambda: (batch[0]["images"] for batch in loader)


LOADERS = (objrec_store, objrec_files, torchvision_imagefolder, timm, litdata, dali)


def main() -> None:
    name, folder, scratch, size, workers, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    makers = {maker.__name__: maker for maker in LOADERS}
    epoch = makers[name](Path(folder), Path(scratch), int(size), int(workers))
    print("ready", flush=True)
    for _ in sys.stdin:
        began, count = time.perf_counter(), 0
        for images in epoch():
            assert str(images.dtype) == "torch.float32" and tuple(images.shape[1:]) == (3, int(size), int(size))
            count += len(images)
        print(count, time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
