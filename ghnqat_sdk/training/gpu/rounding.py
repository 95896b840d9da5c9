"""Fake quantization of activations and weights on a GPU, two launches forward and one back."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghnqat_sdk.training.gpu.numbers import ceiling, clipped_range, onto_levels, power_of_two

_BLOCK = 2048
_MOST_GROUPS = 256


def forward(
    x: Tensor, levels: int, share: float, sigmas: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x (M,) on the levels of its range, and limits (2,) within which gradients pass.

    Args:
        x: Flat.
        levels: 2^bits - 1.
        share: Of the range from the least to the greatest number that is kept.
        sigmas: Standard deviations kept on each side of the mean; infinite for all.
        dtype: Of the result.
    """
    count = x.numel()
    groups = max(1, min(_MOST_GROUPS, ceiling(count, 2 * _BLOCK)))
    of_group = ceiling(ceiling(count, groups), _BLOCK) * _BLOCK
    groups = ceiling(count, of_group)
    sums = x.new_empty(4 * groups, dtype=torch.float32)
    _sums[(groups,)](x, sums, count, of_group, B=_BLOCK, num_warps=8)
    y, limits = torch.empty_like(x, dtype=dtype), sums.new_empty(2)
    within = sigmas != float("inf")
    _round[(ceiling(count, _BLOCK),)](
        x,
        y,
        sums,
        limits,
        count,
        groups,
        float(levels),
        share,
        sigmas if within else 0.0,
        SIGMAS=within,
        N=power_of_two(groups),
        B=_BLOCK,
        num_warps=8,
    )
    return y, limits


def backward(gradient: Tensor, x: Tensor, limits: Tensor) -> Tensor:
    """`gradient` (M,) where x lies within the limits, in x's dtype."""
    of_x = torch.empty_like(x)
    count = x.numel()
    _inside[(ceiling(count, _BLOCK),)](gradient, x, of_x, limits, count, B=_BLOCK, num_warps=8)
    return of_x


@triton.jit(do_not_specialize=["M", "of_group"])
def _sums(x, sums, M, of_group, B: tl.constexpr):
    """(4, G): least, greatest, sum and sum of squares."""
    G = tl.num_programs(0)
    start = tl.program_id(0) * of_group
    end = tl.minimum(start + of_group, M)
    total = tl.zeros((B,), tl.float32)
    square = tl.zeros((B,), tl.float32)
    most = tl.full((B,), float("-inf"), tl.float32)
    least = tl.full((B,), float("inf"), tl.float32)
    for first in range(start, end, B):
        at = first + tl.arange(0, B)
        v = tl.load(x + at, mask=at < end, other=0.0).to(tl.float32)
        total += v
        square += v * v
        most = tl.maximum(most, tl.where(at < end, v, float("-inf")))
        least = tl.minimum(least, tl.where(at < end, v, float("inf")))
    place = sums + tl.program_id(0)
    tl.store(place, tl.min(least, 0))
    tl.store(place + G, tl.max(most, 0))
    tl.store(place + 2 * G, tl.sum(total, 0))
    tl.store(place + 3 * G, tl.sum(square, 0))


@triton.jit(do_not_specialize=["M", "G", "levels", "share", "sigmas"])
def _round(
    x,
    y,
    sums,
    limits,
    M,
    G,
    levels,
    share,
    sigmas,
    SIGMAS: tl.constexpr,
    N: tl.constexpr,
    B: tl.constexpr,
):
    group = tl.arange(0, N)
    low = tl.min(tl.load(sums + group, mask=group < G, other=float("inf")), 0)
    high = tl.max(tl.load(sums + G + group, mask=group < G, other=float("-inf")), 0)
    if SIGMAS:
        mean = tl.sum(tl.load(sums + 2 * G + group, mask=group < G, other=0.0), 0) / M
        square = tl.sum(tl.load(sums + 3 * G + group, mask=group < G, other=0.0), 0) / M
        spread = sigmas * tl.sqrt(tl.maximum(square - mean * mean, 0.0))
        low = tl.maximum(low, mean - spread)
        high = tl.minimum(high, mean + spread)
    scale, zero = clipped_range(low, high, share, levels)
    at = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + at, mask=at < M, other=0.0).to(tl.float32)
    v = onto_levels(v, scale, zero, levels)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=at < M)
    if tl.program_id(0) == 0:
        tl.store(limits, (-zero - 0.5) * scale)
        tl.store(limits + 1, (levels - zero + 0.5) * scale)


@triton.jit(do_not_specialize=["M"])
def _inside(gradient, x, of_x, limits, M, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + at, mask=at < M, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=at < M, other=0.0).to(tl.float32)
    g = tl.where((v >= tl.load(limits)) & (v <= tl.load(limits + 1)), g, 0.0)
    tl.store(of_x + at, g.to(of_x.dtype.element_ty), mask=at < M)
