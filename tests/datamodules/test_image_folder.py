"""Loading: the same batches from wherever they come, however many make them; a store that no kill can spoil."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.datamodules.image_folder import ImageFolderDataModule
from objrec.datamodules.sampling import BatchSampler, InOrder, stratified_share
from objrec.datamodules.store import open_store
from objrec.images import image_folder as folders_module
from objrec.images.image_folder import content_fingerprint, fingerprint, list_classes
from objrec.images.preprocessing import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PREPROCESSING = Preprocessing(size=24, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
COUNTS = {"ant": 13, "bee": 5, "cow": 7}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Split folders of JPEG files of several sizes."""
    random = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for name, count in COUNTS.items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count if split == "train" else 3):
                coarse = random.integers(0, 255, (6, 7, 3), dtype=np.uint8)
                size = (40, 36) if i % 2 else (24, 24)
                Image.fromarray(coarse).resize(size).save(tmp_path / split / name / f"{i}.jpg", quality=95)
    return tmp_path


def module(root: Path, *overrides: str, **options: Any) -> ImageFolderDataModule:
    config = load_config(overrides)
    return ImageFolderDataModule(
        train_dir=root / "train",
        valid_dir=root / "valid",
        preprocessing=PREPROCESSING,
        batch_size=8,
        augmentation=config.augmentation,
        settings=config.datamodule,
        seed=3,
        max_pixels=10**6,
        fraction=config.train.fraction,
        cache_dir=root / "cache",
        **options,
    )


def epoch(data: ImageFolderDataModule, number: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("augmentation", ["shift", "flip_crop", "trivial", "cutmix"])
def test_batches_are_the_same_wherever_they_come_from(root: Path, augmentation: str) -> None:
    options = [f"augmentation={augmentation}", "augmentation.flip_mode=alternate"]
    options += ["datamodule.store_size=32"] if augmentation == "flip_crop" else []
    memory = module(root, *options, "datamodule.cache=memory")
    expected = epoch(memory, 2)
    for cache in ("disk", "off", "disk"):  # the second time from the store that is there
        assert same(epoch(module(root, *options, f"datamodule.cache={cache}"), 2), expected), cache
    assert not same(epoch(memory, 3), expected)
    epoch(memory, 0)
    assert same(epoch(memory, 2), expected), "an epoch is a function of seed and number, not of those before"


def test_worker_processes_make_the_same_batches(root: Path) -> None:
    options = ["augmentation=flip_crop", "datamodule.cache=disk"]
    expected = epoch(module(root, *options))
    assert same(epoch(module(root, *options, "datamodule.num_workers=2")), expected)


def test_evaluation_batches_are_the_preprocessing_of_the_files_in_order(root: Path) -> None:
    files = sorted((root / "valid").glob("*/*.jpg"))
    pixels = np.stack([PREPROCESSING.pixels(f, max_pixels=10**6) for f in files])
    for cache in ("memory", "disk", "off"):
        data = module(root, f"datamodule.cache={cache}", test_dir=root / "test", predict_dir=root / "valid")
        got = [data.on_after_batch_transfer(b, 0) for b in data.val_dataloader()]
        np.testing.assert_array_equal(torch.cat([g[0] for g in got]).numpy(), PREPROCESSING.normalize(pixels))
        assert torch.cat([g[1] for g in got]).tolist() == [0] * 3 + [1] * 3 + [2] * 3
        assert sum(len(t) for _, t in (data.on_after_batch_transfer(b, 0) for b in data.test_dataloader())) == 9
        alone = torch.cat([data.on_after_batch_transfer(b, 0) for b in data.predict_dataloader()])
        np.testing.assert_array_equal(alone.numpy(), PREPROCESSING.normalize(pixels))


def test_a_split_that_was_not_given_is_told(root: Path) -> None:
    with pytest.raises(UserError, match="test_dir is needed"):
        module(root).test_dataloader()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["datamodule.cache_limit=1000000"], "ndarray"),
        (["datamodule.cache_limit=1000"], "DecodedStore"),
        (["datamodule.cache_limit=1000", "datamodule.disk_limit=1000"], "Files"),
    ],
)
def test_auto_goes_by_size(root: Path, options: list[str], kind: str) -> None:
    data = module(root, "datamodule.cache=auto", *options)
    assert type(data.train_dataloader().data.source).__name__ == kind


def test_the_batch_of_a_file_that_cannot_be_decoded_names_it(root: Path) -> None:
    (root / "train" / "bee" / "2.jpg").write_bytes(b"\xff\xd8 no image")
    for cache in ("memory", "disk", "off"):
        with pytest.raises(UserError, match=r"bee/2.jpg cannot be used"):
            epoch(module(root, f"datamodule.cache={cache}"))
    assert not list((root / "cache").rglob("*.partial")) and not list((root / "cache").rglob("store.json"))


# --- the listing


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    names: list[str] = []
    original = folders_module._sha256
    monkeypatch.setattr(folders_module, "_sha256", lambda path: names.append(path.name) or original(path))
    return names


def test_only_what_changed_is_hashed_again(root: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders_module, "SETTLED", -(10**12))  # as if the files were old
    train, cache = root / "train", root / "cache"
    first = list_classes(train, cache)
    assert first.fingerprint and len(hashed) == 25
    hashed.clear()
    assert list_classes(train, cache).fingerprint == first.fingerprint and not hashed
    (train / "bee" / "1.jpg").write_bytes((train / "bee" / "0.jpg").read_bytes())
    (train / "bee" / "9.jpg").write_bytes((train / "cow" / "0.jpg").read_bytes())
    (train / "ant" / "0.jpg").unlink()
    again = list_classes(train, cache)
    assert again.fingerprint != first.fingerprint and again.identity != first.identity
    assert sorted(hashed) == ["1.jpg", "9.jpg"]
    assert again.fingerprint == fingerprint(train)


def test_a_file_that_may_still_change_within_the_clock_s_tick_is_not_remembered(root: Path, hashed: list[str]) -> None:
    fresh = root / "train" / "ant" / "0.jpg"
    fresh.write_bytes(fresh.read_bytes())
    assert list_classes(root / "train", root / "cache").fingerprint
    hashed.clear()
    assert list_classes(root / "train", root / "cache").fingerprint and "0.jpg" in hashed


def test_a_damaged_memory_of_hashes_is_made_anew(root: Path, hashed: list[str]) -> None:
    train, cache = root / "train", root / "cache"
    expected = list_classes(train, cache).fingerprint
    next((cache / "folders").iterdir()).write_bytes(b"PK no archive")
    hashed.clear()
    assert list_classes(train, cache).fingerprint == expected and len(hashed) == 25


def test_swapped_class_folders_and_a_file_replaced_under_its_old_time_are_noticed(root: Path) -> None:
    train, cache = root / "train", root / "cache"
    for path in train.glob("*/*.jpg"):  # all of one time, and of one size as far as pairs go
        os.utime(path, ns=(10**18, 10**18))
    before = list_classes(train, cache)
    assert before.fingerprint == fingerprint(train)
    (train / "ant").rename(root / "x")
    (train / "bee").rename(train / "ant")
    (root / "x").rename(train / "bee")
    swapped = list_classes(train, cache)
    assert swapped.fingerprint == fingerprint(train) != before.fingerprint and swapped.identity != before.identity
    kept = (train / "cow" / "0.jpg").stat()
    with (train / "cow" / "0.jpg").open("r+b") as file:  # what cp -p does: same inode, size and time
        file.seek(kept.st_size // 2)
        file.write(b"other")
    os.utime(train / "cow" / "0.jpg", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    again = list_classes(train, cache)
    assert again.fingerprint == fingerprint(train) != swapped.fingerprint


def test_an_empty_or_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        list_classes(tmp_path / "none")
    with pytest.raises(UserError, match="has no images"):
        list_classes(tmp_path)


# --- the store


def counted(size: int = 4) -> tuple[list[int], Any]:
    """A decoder of images that are filled with their index, and what it was asked for."""
    asked: list[int] = []

    def decode(indices: range) -> Any:
        asked.extend(indices)
        return np.stack([np.full((size, size, 3), i % 256, np.uint8) for i in indices])

    return asked, decode


def test_a_store_is_built_once_and_a_changed_folder_has_another(root: Path) -> None:
    options = ["datamodule.cache=disk", "augmentation=none"]
    epoch(module(root, *options))
    stores = sorted((root / "cache" / "decoded").glob("*/pixels.u8"))
    written = [s.stat().st_mtime_ns for s in stores]
    epoch(module(root, *options))
    assert [s.stat().st_mtime_ns for s in stores] == written
    (root / "train" / "ant" / "1.jpg").write_bytes((root / "train" / "ant" / "0.jpg").read_bytes())
    data = module(root, *options)
    order = torch.cat([torch.as_tensor(b.indices) for b in data.train_dataloader()])
    images = torch.cat([images for images, _ in epoch(data)])[order.argsort()]
    assert torch.equal(images[0], images[1])
    assert len(list((root / "cache" / "decoded").glob("*/pixels.u8"))) == len(stores) + 1


def test_two_builders_at_once_share_one_store(tmp_path: Path) -> None:
    asked, decode = counted()
    stores: list[Any] = []

    def build() -> None:
        stores.append(open_store(tmp_path, "key", count=50, size=4, decode=decode, limit=10**9))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == list(range(50))
    assert all([store[i][0, 0, 0] for i in range(50)] == list(range(50)) for store in stores) and len(stores) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from objrec.datamodules import store
store.CHUNK_BYTES = 480
def decode(indices):
    if indices[0] >= 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((len(indices), 4, 4, 3), np.uint8)
store.open_store(Path(sys.argv[1]), "key", count=50, size=4, decode=decode, limit=10**9)
"""


def test_a_killed_builder_leaves_nothing_that_is_accepted(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -9
    assert list(tmp_path.glob(".key.*.partial/pixels.u8")) and not (tmp_path / "key").exists()
    asked, decode = counted()
    store = open_store(tmp_path, "key", count=50, size=4, decode=decode, limit=10**9)
    assert store[49][0, 0, 0] == 49 and len(asked) == 50
    assert not list(tmp_path.glob(".key*"))


def test_a_damaged_store_is_built_again(tmp_path: Path) -> None:
    _, decode = counted()
    open_store(tmp_path, "key", count=50, size=4, decode=decode, limit=10**9)
    with (tmp_path / "key" / "pixels.u8").open("r+b") as file:
        file.truncate(100)
    assert open_store(tmp_path, "key", count=50, size=4, decode=decode, limit=10**9)[49][0, 0, 0] == 49


def test_the_stores_not_used_for_longest_make_room(tmp_path: Path) -> None:
    _, decode = counted()
    for i, key in enumerate(("old", "used", "new")):
        open_store(tmp_path, key, count=10, size=4, decode=decode, limit=2 * 480)
        os.utime(tmp_path / key / "store.json", ns=(i, i))
        if key == "used":
            os.utime(tmp_path / "old" / "store.json", ns=(5, 5))
    assert {p.parent.name for p in tmp_path.glob("*/store.json")} == {"old", "new"}


def test_reading_lets_go_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objrec.datamodules import store as store_module

    monkeypatch.setattr(store_module, "MAPPED_BYTES", 1_000_000)
    count, size = 400, 128  # 20 MB
    decode = lambda indices: np.ones((len(indices), size, size, 3), np.uint8)  # noqa: E731
    store = open_store(tmp_path, "key", count=count, size=size, decode=decode, limit=10**9)
    most = 0
    for i in range(count):
        assert store[i].min() == 1
        if i % 10 == 9:  # the system takes a while to report it
            most = max(most, mapped_bytes(tmp_path / "key" / "pixels.u8"))
    assert 0 < most < 6_000_000  # an image brings in what is around it, up to 2 MB at either end


def mapped_bytes(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    return sum(int(next(r for r in lines[i:] if r.startswith("Rss:")).split()[1]) * 1024 for i in at)


# --- which images make a batch


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_every_process_has_equally_many_batches_and_together_they_have_all(
    targets: list[int], batch_size: int, world: int, balanced: bool
) -> None:
    labels = np.array(targets)
    samplers = [
        BatchSampler(labels, batch_size, seed=0, balanced=balanced, rank=rank, world=world) for rank in range(world)
    ]
    drawn = [[draw.indices for draw in sampler] for sampler in samplers]
    assert {len(d) for d in drawn} == {len(s) for s in samplers} and len({len(s) for s in samplers}) == 1
    seen = [i for d in drawn for batch in d for i in batch]
    assert len(seen) == -(-len(labels) // world) * world
    if not balanced:
        assert set(seen) == set(range(len(labels)))
    ordered = [
        [i for draw in InOrder(len(labels), batch_size, rank=r, world=world) for i in draw.indices]
        for r in range(world)
    ]
    assert set().union(*ordered) == set(range(len(labels))) and len({len(o) for o in ordered}) == 1


def test_a_balanced_epoch_has_equally_many_of_each_class_and_repeats_no_sooner_than_it_must() -> None:
    targets = np.repeat([0, 1, 2], [80, 15, 5])
    indices = [i for draw in BatchSampler(targets, 10, seed=0, balanced=True) for i in draw.indices]
    assert sorted(np.bincount(targets[indices])) == [33, 33, 34]
    times = np.bincount(indices, minlength=100)
    assert set(times[:80]) == {0, 1} and set(times[80:95]) <= {2, 3} and set(times[95:]) <= {6, 7}


def test_balanced_sampling_reaches_the_loader(root: Path) -> None:
    data = module(root, "datamodule.sampler=balanced")
    counts = torch.bincount(torch.cat([targets for _, targets in epoch(data)]))
    assert sorted(counts.tolist()) == [8, 8, 9] and data.class_counts.tolist() == [13, 5, 7]


@given(st.lists(st.integers(0, 3), min_size=4, max_size=80), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_share_is_stratified_and_a_smaller_one_is_part_of_a_larger(
    targets: list[int], one: float, other: float
) -> None:
    names = [f"{t}/{i}.jpg" for i, t in enumerate(targets)]
    labels = np.array(targets)
    small, large = (stratified_share(names, labels, f) for f in sorted((one, other)))
    assert set(small) <= set(large)
    for c in set(targets):
        total = targets.count(c)
        assert (labels[small] == c).sum() == min(total, max(1, int(np.ceil(total * min(one, other) - 1e-9))))


def test_a_fraction_of_the_training_images_is_loaded_from_any_cache(root: Path) -> None:
    runs = [epoch(module(root, "train.fraction=0.5", f"datamodule.cache={c}")) for c in ("memory", "disk", "off")]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])
    data = module(root, "train.fraction=0.5")
    assert data.class_counts.tolist() == [7, 3, 4] == torch.bincount(torch.cat([t for _, t in runs[0]])).tolist()
    assert data.fingerprint == fingerprint(root / "train"), "the data is the same, whatever share is used"


def test_fingerprints_of_folder_and_rows_agree(root: Path) -> None:
    rows = [(p.parent.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in (root / "train").glob("*/*")]
    assert list_classes(root / "train").fingerprint == content_fingerprint(rows)


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_batch_is_of_one_image_where_others_have_more(count: int, size: int) -> None:
    from itertools import pairwise

    from objrec.datamodules.sampling import batch_bounds

    sizes = [end - start for start, end in pairwise(batch_bounds(count, size))]
    assert sum(sizes) == count and max(sizes) <= (3 if size == 2 else max(size, 1))
    assert count == 1 or size == 1 or min(sizes) > 1
    if count % size != 1:  # all other trainings are as they always were
        assert sizes == [size] * (count // size) + ([count % size] if count % size else [])
