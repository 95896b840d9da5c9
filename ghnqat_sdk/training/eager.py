"""Norm, activation, clip and round in torch's operations, forward and backward, on any device.

What `kernels.py` does where there is no compiler. Tensors are matrices (P, C) of P positions and
C channels, or flat.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.ranges import min_max_range, ratio_clipped_range, sigma_clipped_range
from ghnqat_sdk.training.rounding import NO_LEVELS, ActivationRounding, Clip


def onto_levels(x: Tensor, low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """x (...) on the levels of a range, in float32, and (2,) limits within which gradients pass.

    Values that round into 0 … levels are inside, so the limits lie half a step beyond the outermost
    levels.
    """
    scale, zero = scale_and_zero_point(low, high, levels.bit_length())
    first = -zero
    last = levels - zero
    rounded = torch.round(x.float() * (1 / scale)).clamp(first, last) * scale
    return rounded, torch.stack([(first - 0.5) * scale, (last + 0.5) * scale])


def norm_forward(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, clip: Clip, rounding: ActivationRounding
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm with batch statistics, clip and rounding of x (P, C).

    Returns:
        y: (P, C).
        saved: (6, C) slopes, offsets, means and inverse deviations; the last two rows mean nothing.
        limits: (2,) within which gradients pass.
    """
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
    low, high = ratio_clipped_range(y, rounding.share)
    rounded, within = onto_levels(y, low, high, rounding.levels)
    lowest = torch.maximum(limits[0], within[0])
    highest = torch.minimum(limits[1], within[1])
    return rounded.to(x.dtype), saved, torch.stack([lowest, highest])


def norm_backward(
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


def weight_range(weight: Tensor, sigmas: float) -> tuple[Tensor, Tensor]:
    """(low, high) within `sigmas` deviations of the mean of a weight, and within its extremes."""
    if math.isinf(sigmas):
        return min_max_range(weight)
    return sigma_clipped_range(weight, sigmas)


def inside(gradient: Tensor, x: Tensor, limits: Tensor) -> Tensor:
    """`gradient` where x lies within the limits, in x's dtype."""
    wide = x.float()
    within = (wide >= limits[0]) & (wide <= limits[1])
    return torch.where(within, gradient.float(), 0.0).to(x.dtype)
