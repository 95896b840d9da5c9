"""Batch norm, activation, clip and round as one pass each way: what a fake-quantized network spends its time on.

Each is here twice: in torch's operations, which run anywhere, and as a call of kernels.cpp, which passes over its
tensors once or twice instead of ten times. Where there is a C++ compiler and tensors are on the CPU, the second is
used; both give the same numbers. Tensors are matrices (P, C) of P positions and C channels, or flat.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.training import native

NO_LEVELS = 0
"""Stands for "do not round"."""


class Rounding(NamedTuple):
    """How activations are rounded.

    Attributes:
        levels: 2^bits - 1, or `NO_LEVELS`.
        share: Of the minimum and maximum that is kept.
    """

    levels: int = NO_LEVELS
    share: float = 1.0


class Clip(NamedTuple):
    """An activation that clips: (0, inf) for ReLU, (0, 6) for ReLU6, (-inf, inf) for none."""

    low: float = -math.inf
    high: float = math.inf


def normalise_clip_round(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    clip: Clip,
    rounding: Rounding,
    compiled: bool,
) -> Tensor:
    """Batch norm with batch statistics, a clipping activation and, where asked for, fake quantization.

    Args:
        x: (N, C, H, W) or (N, C).
        gain, shift: (C,) float32.
        eps: Added to variances.
        clip: The activation.
        rounding: What follows it.
        compiled: Whether to run compiled code.

    Returns:
        A tensor like x, channels_last.
    """
    return _NormaliseClipRound.apply(x, gain, shift, eps, clip, rounding, compiled)


def round_activations(x: Tensor, rounding: Rounding, compiled: bool) -> Tensor:
    """x (...) on the levels between `rounding.share` of its minimum and maximum; straight-through inside."""
    return _RoundActivations.apply(x, rounding, compiled)


def round_weight(
    weight: Tensor, sigmas: float, levels: int, dtype: torch.dtype, compiled: bool
) -> Tensor:
    """A weight (...) on the levels within `sigmas` deviations of its mean, and within its extremes; infinite for these.

    Args:
        weight: float32.
        sigmas: Standard deviations kept on each side.
        levels: 2^bits - 1.
        dtype: Of the result.
        compiled: Whether to run compiled code.
    """
    return _RoundWeight.apply(weight, sigmas, levels, dtype, compiled)


class Geometry(NamedTuple):
    """(height, width) of each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def depthwise(x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool = True) -> Tensor:
    """Depthwise convolution of x (N, C, H, W) with a weight (C, 1, Kh, Kw); its gradients are fast for any kernel."""
    return _Depthwise.apply(x, weight, geometry, compiled)


# ---- as matrices


def _matrix(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C) to (P, C), without a copy where channels lie next to each other."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) if x.ndim == 4 else x


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    """(P, C) to the shape of x, channels_last."""
    if x.ndim != 4:
        return matrix
    count, channels, height, width = x.shape
    return matrix.view(count, height, width, channels).permute(0, 3, 1, 2)


def _flat(weight: Tensor) -> Tensor:
    """Numbers of a weight (O, I, Kh, Kw) in the order of channels_last, of any other tensor in its own."""
    return (weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight).reshape(-1)


def _unflat(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_flat`."""
    if like.ndim != 4:
        return flat.view(like.shape)
    outputs, inputs, height, width = like.shape
    return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


# ---- in torch's operations


def _scale(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a range, as in `quantization.functional.scale_and_zero_point`."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / levels
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    return scale, torch.round(-low / scale).clamp(0, levels)


def _onto_levels(x: Tensor, low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """x (...) on the levels of a range, in float32, and (2,) the limits within which gradients pass.

    Values that round into 0 … levels are inside, so the limits lie half a step beyond the outermost levels.
    """
    scale, zero = _scale(low, high, levels)
    first, last = -zero, levels - zero
    rounded = torch.round(x.float() * (1 / scale)).clamp(first, last) * scale
    return rounded, torch.stack([(first - 0.5) * scale, (last + 0.5) * scale])


def _norm_forward(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, clip: Clip, rounding: Rounding
) -> tuple[Tensor, Tensor, Tensor]:
    """(P, C) result, (6, C) slopes, offsets, means and inverse deviations, (2,) limits of the gradient."""
    wide = x.float()
    mean = wide.mean(0)
    variance = ((wide * wide).mean(0) - mean * mean).clamp(min=0.0)
    inverse = torch.rsqrt(variance + eps)
    slope = gain * inverse
    offset = shift - mean * slope
    saved = torch.stack([slope, offset, mean, inverse, mean, mean])
    y = (wide * slope + offset).clamp(*clip)
    limits = torch.tensor(clip, dtype=torch.float32, device=x.device)
    if rounding.levels == NO_LEVELS:
        return y.to(x.dtype), saved, limits
    rounded, within = _onto_levels(
        y, y.amin() * rounding.share, y.amax() * rounding.share, rounding.levels
    )
    limits = torch.stack([torch.maximum(limits[0], within[0]), torch.minimum(limits[1], within[1])])
    return rounded.to(x.dtype), saved, limits


def _norm_backward(
    gradient: Tensor, x: Tensor, saved: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (P, C), gain and shift (C,)."""
    slope, offset, mean, inverse = saved[:4]
    wide = x.float()
    y = wide * slope + offset
    inner = torch.where((y > limits[0]) & (y < limits[1]), gradient.float(), 0.0)
    of_shift = inner.sum(0)
    of_gain = (inner * (wide - mean)).sum(0) * inverse
    linear = -of_gain * inverse * slope / len(x)
    constant = -of_shift * slope / len(x) - linear * mean
    return (inner * slope + constant + wide * linear).to(x.dtype), of_gain, of_shift


def _weight_range(weight: Tensor, sigmas: float) -> tuple[Tensor, Tensor]:
    low, high = weight.amin(), weight.amax()
    if math.isinf(sigmas):
        return low, high
    deviation, mean = torch.std_mean(weight, correction=0)
    return torch.maximum(low, mean - sigmas * deviation), torch.minimum(
        high, mean + sigmas * deviation
    )


def _inside(gradient: Tensor, x: Tensor, limits: Tensor) -> Tensor:
    """`gradient` where x lies within the limits, in x's dtype."""
    wide = x.float()
    return torch.where((wide >= limits[0]) & (wide <= limits[1]), gradient.float(), 0.0).to(x.dtype)


# ---- with gradients


class _NormaliseClipRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        clip: Clip,
        rounding: Rounding,
        compiled: bool,
    ) -> Tensor:
        matrix = _matrix(x).contiguous()
        ctx.native = compiled and native.runs_on(matrix, gain, shift)
        if ctx.native:
            rows, channels = matrix.shape
            y, saved, limits = (
                torch.empty_like(matrix),
                gain.new_empty(6, channels),
                gain.new_empty(2),
            )
            native.call(
                "norm_forward", x.dtype, matrix, gain.contiguous(), shift.contiguous(), y, saved, limits,
                rows, channels, eps, *clip, float(rounding.levels), rounding.share,
            )  # fmt: skip
        else:
            y, saved, limits = _norm_forward(matrix, gain, shift, eps, clip, rounding)
        ctx.save_for_backward(matrix, saved, limits)
        return _like(y, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrix, saved, limits = ctx.saved_tensors
        along = _matrix(gradient).contiguous()
        if ctx.native:
            rows, channels = matrix.shape
            of_x, of_gain, of_shift = (
                torch.empty_like(matrix),
                saved.new_empty(channels),
                saved.new_empty(channels),
            )
            native.call(
                "norm_backward",
                matrix.dtype,
                along,
                matrix,
                saved,
                limits,
                of_x,
                of_gain,
                of_shift,
                rows,
                channels,
            )
        else:
            of_x, of_gain, of_shift = _norm_backward(along, matrix, saved, limits)
        return _like(of_x, gradient), of_gain, of_shift, None, None, None, None


class _RoundActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding, compiled: bool) -> Tensor:
        flat = _flat(x).contiguous()
        ctx.native = compiled and native.runs_on(flat)
        if ctx.native:
            rounded, limits = torch.empty_like(flat), flat.new_empty(2, dtype=torch.float32)
            levels, share = float(rounding.levels), rounding.share
            native.call(
                "round_forward", x.dtype, flat, rounded, limits, flat.numel(), levels, share
            )
        else:
            low, high = flat.amin().float() * rounding.share, flat.amax().float() * rounding.share
            rounded, limits = _onto_levels(flat, low, high, rounding.levels)
            rounded = rounded.to(x.dtype)
        ctx.save_for_backward(flat, limits)
        return _unflat(rounded, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, limits = ctx.saved_tensors
        along = _flat(gradient).contiguous()
        if ctx.native:
            of_x = torch.empty_like(flat)
            native.call("round_backward", flat.dtype, along, flat, of_x, limits, flat.numel())
        else:
            of_x = _inside(along, flat, limits)
        return _unflat(of_x, gradient), None, None


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sigmas: float, levels: int, dtype: torch.dtype, compiled: bool
    ) -> Tensor:
        flat = _flat(weight).contiguous()
        ctx.native = compiled and native.runs_on(flat)
        if ctx.native:
            rounded, limits = torch.empty_like(flat, dtype=dtype), flat.new_empty(2)
            native.call(
                "weight_forward", dtype, flat, rounded, limits, flat.numel(), float(levels), sigmas
            )
        else:
            rounded, limits = _onto_levels(flat, *_weight_range(flat, sigmas), levels)
            rounded = rounded.to(dtype)
        ctx.save_for_backward(flat, limits)
        return _unflat(rounded, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, limits = ctx.saved_tensors
        along = _flat(gradient).contiguous()
        if ctx.native:
            of_weight = torch.empty_like(flat)
            native.call(
                "weight_backward", along.dtype, along, flat, of_weight, limits, flat.numel()
            )
        else:
            of_weight = _inside(along, flat, limits)
        return _unflat(of_weight, gradient), None, None, None, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.compiled = geometry, compiled
        return F.conv2d(x, weight, None, *geometry, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = (
            _depthwise_input(gradient, x, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        )
        return of_x, _depthwise_weight(gradient, x, weight, ctx.geometry, ctx.compiled), None, None


def _depthwise_input(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of the input, as a convolution with the turned kernel: that has a fast kernel for any stride.

    With strides, zeros lie between the numbers of the gradient.
    """
    channels, kernel = x.shape[1], weight.shape[2:]
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


def _depthwise_weight(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, compiled: bool
) -> Tensor:
    source = x.contiguous(memory_format=torch.channels_last)
    if not (compiled and native.runs_on(gradient, source)):
        return _convolution_backward(gradient, source, weight, geometry, [False, True, False])[1]
    channels, height, width = source.shape[1:]
    kernel = weight.shape[2:]
    total = torch.zeros(math.prod(kernel), channels)
    numbers = (
        *gradient.shape[2:],
        height,
        width,
        channels,
        *kernel,
        *(n for pair in geometry for n in pair),
    )
    shapes = torch.tensor(numbers, dtype=torch.int64)
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
