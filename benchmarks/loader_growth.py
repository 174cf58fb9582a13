"""One start of a training's data and one epoch; ``benchmarks/loader.py --growth`` times it on more and more count.

    python benchmarks/loader_growth.py FOLDER CACHE

prints the seconds from listing the folder to the first batch, and the count a second of an epoch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from objrec.config.load import load_config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.images.preprocessing import Preprocessing


def main() -> None:
    folder, cache = map(Path, sys.argv[1:])
    config = load_config(["augmentation=shift", "datamodule.cache=disk"])
    began = time.perf_counter()
    data = ImageFolderDataModule(
        train_dir=folder,
        valid_dir=folder,
        preprocessing=Preprocessing(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        batch_size=256,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=0,
        max_pixels=10**6,
        cache_dir=cache,
    )
    assert len(data.fingerprint) == 64  # a training names its data by it
    batches = iter(data.train_dataloader())
    data.on_after_batch_transfer(next(batches), 0)
    start, began, count = time.perf_counter() - began, time.perf_counter(), 0
    for batch in batches:
        images, _ = data.on_after_batch_transfer(batch, 0)
        count += len(images)
    print(start, count / (time.perf_counter() - began))


if __name__ == "__main__":
    main()
