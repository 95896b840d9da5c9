"""Batch norm, activation, clip and round as one pass each way.

They are what a fake-quantized network spends its time on. Each is here three times: in torch's
operations (`eager.py`), which run anywhere; as a call of kernels.cpp, which passes over its tensors
once or twice instead of ten times, where there is a C++ compiler and tensors are on the CPU; and in
Triton (`gpu/`), where they are on a GPU. All give the same numbers. Tensors are matrices (P, C) of
P positions and C channels, or flat.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ghnqat_sdk.quantization.ranges import ratio_clipped_range
from ghnqat_sdk.training import gpu, native
from ghnqat_sdk.training.eager import (
    inside,
    norm_backward,
    norm_forward,
    onto_levels,
    weight_range,
)
from ghnqat_sdk.training.rounding import ActivationRounding, Clip


def normalise_clip_round(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    clip: Clip,
    rounding: ActivationRounding,
    compiled: bool,
) -> Tensor:
    """Batch norm with batch statistics, a clipping activation and, if asked for, fake quantization.

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


def round_activations(x: Tensor, rounding: ActivationRounding, compiled: bool) -> Tensor:
    """x (...) on the levels between `rounding.share` of its minimum and of its maximum.

    Its gradient passes straight through inside of them.
    """
    return _RoundActivations.apply(x, rounding, compiled)


def round_weight(
    weight: Tensor, sigmas: float, levels: int, dtype: torch.dtype, compiled: bool
) -> Tensor:
    """A weight (...) on the levels within `sigmas` deviations of its mean, and within its extremes.

    Args:
        weight: float32.
        sigmas: Standard deviations kept on each side; infinite for the extremes alone.
        levels: 2^bits - 1.
        dtype: Of the result.
        compiled: Whether to run compiled code.
    """
    return _RoundWeight.apply(weight, sigmas, levels, dtype, compiled)


class _NormaliseClipRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        clip: Clip,
        rounding: ActivationRounding,
        compiled: bool,
    ) -> Tensor:
        matrix = _matrix(x).contiguous()
        ctx.made_for = _made_for(compiled, matrix, gain, shift)
        if ctx.made_for == "gpu":
            from ghnqat_sdk.training.gpu import norms

            y, saved, limits = norms.forward(matrix, gain, shift, eps, clip, rounding)
        elif ctx.made_for == "cpu":
            y = torch.empty_like(matrix)
            saved = gain.new_empty(6, matrix.shape[1])
            limits = gain.new_empty(2)
            tensors = (matrix, gain.contiguous(), shift.contiguous(), y, saved, limits)
            numbers = (*matrix.shape, eps, *clip, float(rounding.levels), rounding.share)
            native.call("norm_forward", x.dtype, *tensors, *numbers)
        else:
            y, saved, limits = norm_forward(matrix, gain, shift, eps, clip, rounding)
        ctx.save_for_backward(matrix, saved, limits)
        return _like(y, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrix, saved, limits = ctx.saved_tensors
        along = _matrix(gradient).contiguous()
        if ctx.made_for == "gpu":
            from ghnqat_sdk.training.gpu import norm_gradients

            of_x, of_gain, of_shift = norm_gradients.backward(along, matrix, saved, limits)
        elif ctx.made_for == "cpu":
            of_x = torch.empty_like(matrix)
            of_gain = saved.new_empty(matrix.shape[1])
            of_shift = saved.new_empty(matrix.shape[1])
            tensors = (along, matrix, saved, limits, of_x, of_gain, of_shift)
            native.call("norm_backward", matrix.dtype, *tensors, *matrix.shape)
        else:
            of_x, of_gain, of_shift = norm_backward(along, matrix, saved, limits)
        return _like(of_x, gradient), of_gain, of_shift, None, None, None, None


class _RoundActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: ActivationRounding, compiled: bool) -> Tensor:
        flat = flatten(x).contiguous()
        ctx.made_for = _made_for(compiled, flat)
        if ctx.made_for == "gpu":
            from ghnqat_sdk.training.gpu import rounding as on_gpu

            every = (rounding.levels, rounding.share, math.inf)
            rounded, limits = on_gpu.forward(flat, *every, x.dtype)
        elif ctx.made_for == "cpu":
            rounded = torch.empty_like(flat)
            limits = flat.new_empty(2, dtype=torch.float32)
            numbers = (flat.numel(), float(rounding.levels), rounding.share)
            native.call("round_forward", x.dtype, flat, rounded, limits, *numbers)
        else:
            low, high = ratio_clipped_range(flat.float(), rounding.share)
            rounded, limits = onto_levels(flat, low, high, rounding.levels)
            rounded = rounded.to(x.dtype)
        ctx.save_for_backward(flat, limits)
        return unflatten(rounded, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient_inside(ctx, gradient, "round_backward"), None, None


class _RoundWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sigmas: float, levels: int, dtype: torch.dtype, compiled: bool
    ) -> Tensor:
        flat = flatten(weight).contiguous()
        ctx.made_for = _made_for(compiled, flat)
        if ctx.made_for == "gpu":
            from ghnqat_sdk.training.gpu import rounding as on_gpu

            rounded, limits = on_gpu.forward(flat, levels, 1.0, sigmas, dtype)
        elif ctx.made_for == "cpu":
            rounded = torch.empty_like(flat, dtype=dtype)
            limits = flat.new_empty(2)
            numbers = (flat.numel(), float(levels), sigmas)
            native.call("weight_forward", dtype, flat, rounded, limits, *numbers)
        else:
            rounded, limits = onto_levels(flat, *weight_range(flat, sigmas), levels)
            rounded = rounded.to(dtype)
        ctx.save_for_backward(flat, limits)
        return unflatten(rounded, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient_inside(ctx, gradient, "weight_backward"), None, None, None, None


def _gradient_inside(ctx: Any, gradient: Tensor, function: str) -> Tensor:
    """The gradient (...) where what was rounded lay between its limits; `function` of kernels.cpp
    is for tensors of its dtype."""
    flat, limits = ctx.saved_tensors
    along = flatten(gradient).contiguous()
    if ctx.made_for == "gpu":
        from ghnqat_sdk.training.gpu import rounding as on_gpu

        of_x = on_gpu.backward(along, flat, limits)
    elif ctx.made_for == "cpu":
        of_x = torch.empty_like(flat)
        native.call(function, along.dtype, along, flat, of_x, limits, flat.numel())
    else:
        of_x = inside(along, flat, limits)
    return unflatten(of_x, gradient)


def _made_for(compiled: bool, *tensors: Tensor) -> Literal["cpu", "gpu", "any"]:
    """Which code runs on these tensors."""
    if compiled and gpu.runs_on(*tensors):
        return "gpu"
    return "cpu" if compiled and native.runs_on(*tensors) else "any"


def _matrix(x: Tensor) -> Tensor:
    """(N, C, H, W) or (N, C) to (P, C), without a copy where channels lie next to each other."""
    if x.ndim != 4:
        return x
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _like(matrix: Tensor, x: Tensor) -> Tensor:
    """(P, C) to the shape of x, channels_last."""
    if x.ndim != 4:
        return matrix
    count, channels, height, width = x.shape
    return matrix.view(count, height, width, channels).permute(0, 3, 1, 2)


def flatten(weight: Tensor) -> Tensor:
    """Numbers of (O, I, Kh, Kw) in the order of channels_last, of any other tensor in its own."""
    channels_last = weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight
    return channels_last.reshape(-1)


def unflatten(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `flatten`."""
    if like.ndim != 4:
        return flat.view(like.shape)
    outputs, inputs, height, width = like.shape
    return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
