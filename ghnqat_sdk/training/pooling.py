"""Average pooling as a depthwise convolution, and the corner of a map, with fast gradients.

torch's own gradient of an average pool takes three times as long as the pool, and that of a slice
comes in another layout than channels_last, which whatever it meets then has to convert.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.training.depthwise import Geometry, depthwise


def average_pool(module: nn.AvgPool2d, x: Tensor, compiled: bool = True) -> Tensor:
    """What `module` computes of x (N, C, H, W), channels_last; on a GPU by compiled kernels, unless
    `compiled` says no."""
    if module.ceil_mode or module.divisor_override is not None:
        return module(x)
    kernel, stride, padding = (
        _pair(size) for size in (module.kernel_size, module.stride, module.padding)
    )
    geometry = Geometry(stride, padding, (1, 1))
    ones = x.new_ones(x.shape[1], 1, *kernel)
    total = depthwise(x, ones, geometry, compiled)
    if module.count_include_pad:
        return total / math.prod(kernel)
    return total / F.conv2d(x.new_ones(1, 1, *x.shape[2:]), ones[:1], None, *geometry)


def corner(x: Tensor, images: int, channels: int) -> Tensor:
    """The first images and channels of x (N, C, H, W); its gradient is channels_last."""
    if len(x) <= images and x.shape[1] <= channels:
        return x
    return _Corner.apply(x, images, channels)


class _Corner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, images: int, channels: int) -> Tensor:
        ctx.shape = x.shape
        return x[:images, :channels]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        count, channels, height, width = ctx.shape
        whole = gradient.new_zeros(count, height, width, channels).permute(0, 3, 1, 2)
        whole[: gradient.shape[0], : gradient.shape[1]] = gradient
        return whole, None, None


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
