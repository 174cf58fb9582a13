"""Convolutions as matrix products: the same function, the same gradients, the same file."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from objrec.models import im2col


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((2, 2), (3, 3), (1, 1), (1, 1)), ((4, 5), (3, 2), (2, 1), (1, 0)), ((7, 7), (5, 5), (3, 2), (2, 2))],
)
def test_values_and_gradients_are_those_of_a_convolution(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    make = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *size, generator=make, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, generator=make, dtype=torch.float64, requires_grad=True)
    out = im2col._Product.apply(images, weight, stride, padding)
    expected = F.conv2d(images, weight, stride=stride, padding=padding)
    torch.testing.assert_close(out, expected)
    seed = torch.randn(expected.shape, generator=make, dtype=torch.float64)
    found = torch.autograd.grad(out, (images, weight), seed)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (images, weight), seed))


def test_only_small_maps_in_bf16_and_only_plain_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 4, 3, padding=1),
    )
    names = list(model.state_dict())
    im2col.use_im2col(model)
    assert [type(m) is im2col.Im2colConv2d for m in model] == [True, False, False, True]
    assert list(model.state_dict()) == names and isinstance(copy.deepcopy(model)[0], im2col.Im2colConv2d)
    small, large = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 10, 10)  # maps of 4 x 4 and 5 x 5
    with patch.object(im2col._Product, "apply", wraps=im2col._Product.apply) as product:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(large)
            assert product.call_count == 0
            fast = model(small)
            assert product.call_count == 2
        exact = model(small)
        assert product.call_count == 2
    torch.testing.assert_close(fast.float(), exact, atol=0.05, rtol=0.05)
