"""Convolutions over small feature maps as matrix products, for training in bf16 on a CPU.

oneDNN 3.x computes the gradient of a 3 x 3 kernel over 2 x 2 maps at a tenth of the speed of the matrix product that it
is: 31 ms beside 3 ms for 512 channels and 128 images on two cores with AMX. Nearly all of a small image's last
layers is that, so a training step of a ResNet-18 takes two thirds of the time at 64 px.

Source: Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing", 2006.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST: Final = 16  # positions of an output map; at 8 x 8 oneDNN's own way is the faster one


def use_im2col(model: nn.Module) -> None:
    """Let the plain convolutions of ``model`` compute small maps as products, wherever it runs in bf16 on a CPU.

    Parameters, their names and what is exported stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Im2colConv2d


def _is_plain(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == 1
        and conv.kernel_size[0] * conv.kernel_size[1] > 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class Im2colConv2d(nn.Conv2d):
    """A convolution that is a matrix product where that is faster."""

    def forward(self, images: Tensor) -> Tensor:
        if images.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            (h, w), (sy, sx) = self.kernel_size, self.stride
            down, right = map(int, self.padding)
            height, width = images.shape[2:]
            if ((height + 2 * down - h) // sy + 1) * ((width + 2 * right - w) // sx + 1) <= LARGEST:
                dtype = torch.get_autocast_dtype("cpu")
                out: Tensor = _Product.apply(images.to(dtype), self.weight.to(dtype), self.stride, self.padding)
                return out if self.bias is None else out + self.bias.to(dtype)[:, None, None]
        return super().forward(images)


class _Product(torch.autograd.Function):
    """(N, C, H, W) and (O, C, h, w) to (N, O, H', W'), channels last in memory."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        (h, w), (down, right), (sy, sx) = weight.shape[2:], padding, stride
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, right, right, down, down))
        patches = padded.unfold(1, h, sy).unfold(2, w, sx).permute(0, 1, 2, 4, 5, 3)  # N, H', W', h, w, C
        columns = patches.flatten(3).flatten(0, 2)
        kernels = weight.permute(0, 2, 3, 1).flatten(1)
        ctx.save_for_backward(columns, kernels)
        ctx.geometry = images.shape, patches.shape, stride, padding
        return (columns @ kernels.T).view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        columns, kernels = ctx.saved_tensors
        (n, channels, height, width), (_, rows, cols, h, w, _), (sy, sx), (down, right) = ctx.geometry
        flat = gradient.permute(0, 2, 3, 1).flatten(0, 2)
        of_weight = (flat.T @ columns).view(-1, h, w, channels).permute(0, 3, 1, 2)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        of_patches = (flat @ kernels).view(n, rows, cols, h, w, channels)
        padded = of_patches.new_zeros(n, height + 2 * down, width + 2 * right, channels)
        for y in range(h):
            for x in range(w):
                padded[:, y : y + sy * rows : sy, x : x + sx * cols : sx] += of_patches[:, :, :, y, x]
        of_images = padded[:, down : down + height, right : right + width].permute(0, 3, 1, 2)
        return of_images, of_weight, None, None
