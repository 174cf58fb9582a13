"""Augmentation: draws repeat, operations are those of the literature, targets follow their images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.datamodules.augmentation import BatchAugmentation
from objrec.datamodules.crops import RandomResizedCrop, resize_into
from objrec.datamodules.policies import MOVES, OPERATIONS, apply

FILL = [124, 116, 104]


def random_images(n: int = 8, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8 (N, 3, size, size), channels last."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def augment(
    *overrides: str, images: torch.Tensor | None = None, epoch: int = 0, seed: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    images = random_images() if images is None else images
    settings = load_config(overrides).augmentation
    targets = torch.arange(len(images)) % 4
    before = images.clone()
    out = BatchAugmentation(settings, fill=FILL, num_classes=4)(
        images, targets, indices=np.arange(len(images)), epoch=epoch, seed=seed
    )
    assert torch.equal(images, before), "the images of a store may not be written to"
    return out


def test_alternate_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = random_images(400, 8)
    options = ["augmentation=shift", "augmentation.pad=0", "augmentation.flip_mode=alternate"]
    first, second, third = (augment(*options, images=images, epoch=e, seed=e)[0] for e in range(3))
    mirrored = images.flip(3)
    turned = (first == mirrored).flatten(1).all(1)
    assert torch.equal(first[~turned], images[~turned])
    assert torch.equal(second[turned], images[turned]) and torch.equal(second[~turned], mirrored[~turned])
    assert torch.equal(first, third)
    assert 150 < turned.sum() < 250
    neighbours = turned[1:] == turned[:-1]
    assert 130 < neighbours.sum() < 270, "which are mirrored first should not follow from the order"


def test_draws_follow_the_seed_alone() -> None:
    options = ["augmentation=trivial", "augmentation.erase=0.5", "augmentation.cutmix=1.0", "augmentation.mixup=0.4"]
    once, again, other = (augment(*options, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(once[0], again[0]) and torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])


def test_none_changes_nothing_even_with_the_keys_of_others() -> None:
    for options in (["augmentation=none"], ["augmentation=shift", "augmentation.name=none"]):
        assert torch.equal(augment(*options)[0], random_images())


def test_shift_moves_by_at_most_the_pad_and_reflects() -> None:
    images = random_images(64, 12)
    out = augment("augmentation=shift", "augmentation.pad=2", "augmentation.flip=0.0", images=images)[0]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    seen = set()
    for image, wide in zip(out.numpy(), padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if (image == wide[:, y : y + 12, x : x + 12]).all()]
        assert places
        seen.add(places[0])
    assert len(seen) > 15


def test_random_boxes_keep_to_their_ranges() -> None:
    boxes = RandomResizedCrop([0.3, 0.9], [0.75, 4 / 3]).boxes(500, 100, seed=1)
    left, top, right, bottom = boxes.T
    assert (boxes >= 0).all() and (boxes <= 100).all()
    area, aspect = (right - left) * (bottom - top) / 1e4, (right - left) / (bottom - top)
    assert area.min() > 0.26 and area.max() < 0.92 and area.std() > 0.1
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.4
    assert left.std() > 3 and top.std() > 3
    whole = RandomResizedCrop([1.0, 1.0], [1.0, 1.0]).boxes(3, 57, seed=1)
    assert whole.tolist() == [[0, 0, 57, 57]] * 3


def test_a_crop_is_resized_as_torchvision_does_it() -> None:
    from torchvision.transforms.v2 import functional as tv

    image = random_images(1, 64)[0]
    out = np.empty((40, 40, 3), np.uint8)
    for box in ((3, 5, 60, 49), (10, 20, 30, 50)):
        left, top, right, bottom = box
        resize_into(out, image.permute(1, 2, 0).numpy()[top:bottom, left:right])
        expected = tv.resized_crop(image, top, left, bottom - top, right - left, [40, 40], antialias=True)
        assert (torch.from_numpy(out).permute(2, 0, 1).int() - expected.int()).abs().max() <= 1


TORCHVISION = {
    "shear_x": lambda tv, x, s: tv.affine(x, 0.0, [0, 0], 1.0, [float(np.degrees(np.arctan(s))), 0.0], center=[0, 0]),
    "shear_y": lambda tv, x, s: tv.affine(x, 0.0, [0, 0], 1.0, [0.0, float(np.degrees(np.arctan(s)))], center=[0, 0]),
    "translate_x": lambda tv, x, s: tv.affine(x, 0.0, [int(s), 0], 1.0, [0.0, 0.0]),
    "translate_y": lambda tv, x, s: tv.affine(x, 0.0, [0, int(s)], 1.0, [0.0, 0.0]),
    "rotate": lambda tv, x, s: tv.rotate(x, s),
    "brightness": lambda tv, x, s: tv.adjust_brightness(x, 1 + s),
    "contrast": lambda tv, x, s: tv.adjust_contrast(x, 1 + s),
    "color": lambda tv, x, s: tv.adjust_saturation(x, 1 + s),
    "sharpness": lambda tv, x, s: tv.adjust_sharpness(x, 1 + s),
    "posterize": lambda tv, x, s: tv.posterize(x, 8 - int(s)),
    "solarize": lambda tv, x, s: tv.solarize(x, 255 - s),
    "autocontrast": lambda tv, x, s: tv.autocontrast(x),
    "equalize": lambda tv, x, s: tv.equalize(x),
    "identity": lambda tv, x, s: x,
}
STRENGTHS = {"rotate": [-90.0, 37.0], "posterize": [1.0, 4.0], "solarize": [60.0, 255.0]} | {
    name: [-7.0, 12.0] for name in ("translate_x", "translate_y")
}


def test_operations_are_those_of_torchvision_for_each_image_of_a_batch() -> None:
    """All operations in one batch, two strengths each: none takes a neighbour's."""
    from torchvision.transforms.v2 import functional as tv

    assert set(TORCHVISION) == set(OPERATIONS)
    names = [name for name in OPERATIONS for _ in range(2)]
    strengths = [s for name in OPERATIONS for s in STRENGTHS.get(name, [-0.57, 0.45])]
    images = random_images(len(names), 31)
    out = apply(images, names, np.array(strengths), fill=torch.zeros(3, dtype=torch.uint8))
    for name, strength, before, after in zip(names, strengths, images, out, strict=True):
        expected = TORCHVISION[name](tv, before, strength)
        differ = (after.int() - expected.int()).abs() > 1
        # a movement to the nearest pixel: where a place is on the edge of two, rounding decides
        assert differ.float().mean() < (0.02 if name in MOVES else 1e-9), (name, strength)


def test_policies_use_every_operation_and_their_strengths() -> None:
    images = random_images(300, 16)
    trivial = augment("augmentation=trivial", "augmentation.flip=0.0", images=images)[0]
    changed = (trivial != images).flatten(1).any(1).float().mean()
    assert 0.7 < changed < 0.98
    weak, strong = (
        augment("augmentation=rand", "augmentation.flip=0.0", f"augmentation.magnitude={m}", images=images)[0]
        for m in (2, 25)
    )
    distance = [(out.float() - images.float()).abs().mean() for out in (weak, strong)]
    assert distance[0] < distance[1]


def test_erasing_fills_a_box_of_the_asked_size_with_the_mean_colour() -> None:
    images = random_images(200, 40)
    out = augment("augmentation=none", "augmentation.erase=0.5", "augmentation.erase_area=[0.1,0.2]", images=images)[0]
    erased = (out != images).any(1)
    hit = erased.flatten(1).any(1)
    assert 70 < hit.sum() < 130
    assert (out.permute(0, 2, 3, 1)[erased] == torch.tensor(FILL, dtype=torch.uint8)).all()
    share = erased[hit].flatten(1).float().mean(1)
    assert share.min() > 0.06 and share.max() < 0.24


def test_cutout_takes_a_square_that_may_lie_over_the_edge() -> None:
    images = torch.full((100, 3, 20, 20), 7, dtype=torch.uint8)
    gone = (augment("augmentation=none", "augmentation.cutout=6", images=images)[0] != 7).all(1).flatten(1).sum(1)
    assert gone.max() == 36 and 9 <= gone.min() < 36


def test_targets_of_mixed_images_are_the_shares_that_are_seen() -> None:
    levels = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    images = levels[torch.arange(64) % 4][:, None, None, None].expand(64, 3, 20, 20).contiguous()
    for kind in ("mixup", "cutmix"):
        out, targets = augment("augmentation=none", f"augmentation.{kind}=1.0", images=images)
        assert targets.dtype == torch.float32 and targets.shape == (64, 4)
        torch.testing.assert_close(targets.sum(1), torch.ones(64))
        shown = out.float().mean((1, 2, 3))
        torch.testing.assert_close(shown, targets @ levels.float(), atol=1.0, rtol=0)
        assert (targets.amax(1) < 0.9).sum() > 10
        if kind == "cutmix":
            assert set(out.unique().tolist()) <= set(levels.tolist())


def test_mixup_and_cutmix_take_turns() -> None:
    images = torch.tensor([0, 200], dtype=torch.uint8)[torch.arange(16) % 2][:, None, None, None].expand(16, 3, 9, 9)
    options = ["augmentation=none", "augmentation.mixup=1.0", "augmentation.cutmix=1.0"]
    kinds = {len(augment(*options, images=images.contiguous(), seed=s)[0].unique()) > 2 for s in range(12)}
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augmentation.scale=[0.9,0.1]"], "from the smallest to the largest"),
        (["augmentation=none", "augmentation.name=rand"], "needs num_ops, magnitude"),
        (["augmentation.flip_mode=sometimes"], "alternate"),
        (["train.fraction=0"], "should be above 0"),
        (["datamodule.num_workers=many"], "num_workers"),
    ],
)
def test_a_mistake_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(overrides)
