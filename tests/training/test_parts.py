"""The parts of a recipe, each on its own: losses, parameter groups, averages, sizes, trials."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.training import QUIET

from objrec.config.errors import UserError
from objrec.config.load import load_config
from objrec.models.backbones import build_backbone, head_of
from objrec.training.hardware import choose_hardware, memory_advice
from objrec.training.losses import ClassificationLoss, balanced_weights
from objrec.training.parameter_groups import parameter_groups
from objrec.training.progressive_resize import ProgressiveResize
from objrec.training.tuner import _steepest

pytestmark = QUIET
LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
HARD = torch.arange(12) % 4
SOFT = 0.7 * F.one_hot(HARD, 4) + 0.3 * F.one_hot(HARD.flip(0), 4)
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 0.1])


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_targets_are_a_case_of_soft_ones(kind: Any, smoothing: float, weights: Any) -> None:
    loss = ClassificationLoss(kind=kind, label_smoothing=smoothing, class_weights=weights)
    torch.testing.assert_close(loss(LOGITS, HARD), loss(LOGITS, F.one_hot(HARD, 4).float()))


def test_the_losses_agree_with_torch_and_with_their_definitions() -> None:
    weighted = ClassificationLoss(class_weights=WEIGHTS)
    torch.testing.assert_close(weighted(LOGITS, HARD), F.cross_entropy(LOGITS, HARD, weight=WEIGHTS))
    torch.testing.assert_close(
        ClassificationLoss(label_smoothing=0.1)(LOGITS, SOFT), F.cross_entropy(LOGITS, SOFT, label_smoothing=0.1)
    )
    without_focus = ClassificationLoss(kind="focal", gamma=0.0, label_smoothing=0.1)
    torch.testing.assert_close(without_focus(LOGITS, HARD), F.cross_entropy(LOGITS, HARD, label_smoothing=0.1))
    p = LOGITS.softmax(1)[torch.arange(12), HARD]
    focal = ClassificationLoss(kind="focal", gamma=2.0)
    torch.testing.assert_close(focal(LOGITS, HARD), (-((1 - p) ** 2) * p.log()).mean())


def test_balanced_weights_make_classes_count_alike() -> None:
    weights = balanced_weights([10, 30, 0])
    assert weights.tolist() == pytest.approx([40 / 30, 40 / 90, 0.0])


def test_biases_and_norms_have_no_weight_decay_unless_asked() -> None:
    model = build_backbone(name="test_resnet", num_classes=2, image_size=32)
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.05, "layer_decay": None}
    decayed, exempt = parameter_groups(model, decay_norms=False, **options)
    assert exempt["weight_decay"] == 0.0 and all(p.ndim <= 1 for p in exempt["params"])
    assert decayed["weight_decay"] == 0.05 and all(p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(model.parameters()))
    (everything,) = parameter_groups(model, decay_norms=True, **options)
    assert len(everything["params"]) == len(list(model.parameters()))


def test_layers_learn_the_slower_the_farther_they_are_from_the_head() -> None:
    model = build_backbone(name="test_vit", num_classes=2, image_size=32)
    groups = parameter_groups(model, lr=0.1, weight_decay=None, layer_decay=0.5, decay_norms=False)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rate[id(model.head.weight)] == pytest.approx(0.1)
    first, last = model.blocks[0].mlp.fc1.weight, model.blocks[-1].mlp.fc1.weight
    assert rate[id(first)] < rate[id(last)] < 0.1
    assert all("weight_decay" not in g for g in groups)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_head_is_found(name: str) -> None:
    head = head_of(build_backbone(name=name, num_classes=7, image_size=32))
    assert [p.shape[0] for p in head.parameters()] == [7, 7]


def test_sizes_grow_to_the_whole() -> None:
    resize = ProgressiveResize(start=0.5, max_epochs=10)
    assert resize.size(40, 0) == 32  # no smaller
    sizes = [resize.size(64, epoch) for epoch in range(10)]
    assert sizes[0] == 32 and sizes == sorted(sizes) and sizes[6:] == [64] * 4
    assert all(size % 8 == 0 for size in sizes)
    assert resize(torch.zeros(2, 3, 64, 64), 0).shape == (2, 3, 32, 32)


def test_the_steepest_descent_before_the_minimum_is_picked() -> None:
    rates = [10 ** (i / 10 - 4) for i in range(40)]
    losses = [2 - 1 / (1 + math.exp(-(i - 20))) + max(0, i - 30) ** 2 for i in range(40)]
    assert _steepest(rates, losses) == pytest.approx(0.01, rel=0.1)
    assert _steepest(rates, [1.0 + i for i in range(40)]) is None


@pytest.mark.parametrize(
    ("units", "precision"), [((True, True), "bf16-mixed"), ((False, True), "bf16-mixed"), ((False, False), "32")]
)
def test_bf16_only_where_the_processor_has_it(
    units: tuple[bool, bool], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units[0])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units[1])
    hardware = choose_hardware(load_config(["compute=cpu"]).compute)
    assert hardware.precision == precision and ("no bf16" in hardware.reason) == (precision == "32")
    assert choose_hardware(load_config(["compute=cpu", "compute.precision=32"]).compute).precision == "32"
    asked = choose_hardware(load_config(["compute=cpu", "compute.precision=bf16-mixed"]).compute)
    assert asked.precision == "bf16-mixed" and ("warning: this processor" in asked.reason) == (not any(units))
    depthwise = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8))
    assert choose_hardware(load_config(["compute=cpu"]).compute, depthwise).precision == "32"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory: you tried to"),
    ],
)
def test_running_out_of_memory_says_what_to_try(error: Exception) -> None:
    with pytest.raises(UserError, match=r"train.batch_size=64: try train.batch_size=32 "), memory_advice(64):
        raise error
    with pytest.raises(UserError, match="smaller backbone"), memory_advice(1):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_advice(64):
        raise RuntimeError("shape mismatch")


def test_batch_norm_in_common_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="GPUs only"):
        choose_hardware(load_config(["compute=cpu", "compute.sync_batchnorm=true"]).compute)


@pytest.mark.parametrize("value", ["0", "many", "1.5", "true"])
def test_a_batch_size_is_a_count_or_auto(value: str) -> None:
    assert load_config(["train.batch_size=auto"]).train.batch_size == "auto"
    with pytest.raises(UserError, match=r"train.batch_size: should be a whole number of at least 1, or auto"):
        load_config([f"train.batch_size={value}"])


def test_a_schedule_that_never_thaws_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves no epoch"):
        load_config(["train.freeze_epochs=10", "train.max_epochs=10"])


def test_keeping_the_statistics_of_random_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.freeze_batch_norm: random weights"):
        load_config(["train.freeze_batch_norm=true", "backbone.pretrained=false"])
    load_config(["train.freeze_batch_norm=true", "backbone.pretrained=false", "backbone.weights=x.safetensors"])
