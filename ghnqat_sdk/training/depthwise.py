"""Depthwise convolution whose gradients are fast for any kernel and stride."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.training import gpu, native


class Geometry(NamedTuple):
    """(height, width) of each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def depthwise(x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool = True) -> Tensor:
    """Depthwise convolution of x (N, C, H, W) with a weight (C, 1, Kh, Kw)."""
    return _Depthwise.apply(x, weight, geometry, compiled)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        ctx.compiled = compiled
        ctx.on_gpu = compiled and gpu.runs_on(x, weight)
        if ctx.on_gpu:
            from ghnqat_sdk.training.gpu import depthwise as on_gpu

            return on_gpu.forward(x, weight, geometry)
        return F.conv2d(x, weight, None, *geometry, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x, of_weight = None, None
        if ctx.on_gpu:
            from ghnqat_sdk.training.gpu import depthwise as on_gpu

            inputs = (gradient, x, weight, ctx.geometry)
            of_x = on_gpu.of_input(*inputs) if ctx.needs_input_grad[0] else None
            of_weight = on_gpu.of_weight(*inputs) if ctx.needs_input_grad[1] else None
            return of_x, of_weight, None, None
        if ctx.needs_input_grad[0]:
            of_x = _of_input(gradient, x, weight, ctx.geometry)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(gradient, x, weight, ctx.geometry, ctx.compiled)
        return of_x, of_weight, None, None


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of x, as a convolution with the turned kernel: that is fast for any stride.

    With strides, zeros lie between the numbers of the gradient.
    """
    channels = x.shape[1]
    kernel = weight.shape[2:]
    spans = [d * (k - 1) for d, k in zip(geometry.dilation, kernel, strict=True)]
    padding = [span - p for span, p in zip(spans, geometry.padding, strict=True)]
    if min(padding) < 0:
        return _convolution_backward(gradient, x, weight, geometry, [True, False, False])[0]
    if geometry.stride != (1, 1):
        sides = [
            side + 2 * p - span
            for side, p, span in zip(x.shape[2:], geometry.padding, spans, strict=True)
        ]
        apart = gradient.new_zeros(len(x), *sides, channels).permute(0, 3, 1, 2)
        apart[:, :, :: geometry.stride[0], :: geometry.stride[1]] = gradient
        gradient = apart
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, padding, geometry.dilation, channels)


def _of_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool
) -> Tensor:
    """The gradient of the weight."""
    source = x.contiguous(memory_format=torch.channels_last)
    if not (compiled and native.runs_on(gradient, source)):
        return _convolution_backward(gradient, source, weight, geometry, [False, True, False])[1]
    channels, height, width = source.shape[1:]
    kernel = weight.shape[2:]
    total = torch.zeros(math.prod(kernel), channels)
    sides = (*gradient.shape[2:], height, width, channels, *kernel)
    shapes = torch.tensor([*sides, *chain(*geometry)], dtype=torch.int64)
    native.call("depthwise_weight", gradient.dtype, gradient, source, total, len(source), shapes)
    return total.view(*kernel, 1, channels).permute(3, 2, 0, 1).to(weight.dtype)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation = (list(pair) for pair in geometry)
    groups = x.shape[1]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
