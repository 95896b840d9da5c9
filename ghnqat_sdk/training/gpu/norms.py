"""Batch norm, activation, clip and round on a GPU; eager.py says what each function gives.

Forward: extremes and sums of groups of rows; from them slopes and offsets of channels and the ends
of blocks of channels; then each number. Backward likewise.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghnqat_sdk.training.gpu.numbers import (
    Tiles,
    ceiling,
    clipped_range,
    eights,
    onto_levels,
    power_of_two,
)
from ghnqat_sdk.training.rounding import NO_LEVELS, ActivationRounding, Clip

_ROWS = 64  # of groups at a time, when they are added up


def forward(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, clip: Clip, rounding: ActivationRounding
) -> tuple[Tensor, Tensor, Tensor]:
    """y (P, C), saved (4, C) slopes, offsets, means and inverse deviations, and limits (2,)."""
    positions, channels = x.shape
    tiles = Tiles.of(positions, channels)
    count, eight = eights(channels)
    sums = gain.new_empty(tiles.groups * 4 * channels)
    _sums[tiles.groups, tiles.blocks](
        x,
        sums,
        positions,
        count,
        tiles.rows_of_group,
        EIGHT=eight,
        R=tiles.rows,
        B=tiles.channels,
        num_warps=8,
    )
    width = min(32, tiles.channels)
    blocks = ceiling(channels, width)
    saved, ends = gain.new_empty(4, channels), gain.new_empty(2 * blocks)
    _slopes[(blocks,)](
        sums,
        gain.contiguous(),
        shift.contiguous(),
        saved,
        ends,
        positions,
        channels,
        tiles.groups,
        eps,
        R=_ROWS,
        B=width,
    )
    y, limits = torch.empty_like(x), gain.new_empty(2)
    _normalise[ceiling(positions, tiles.rows), tiles.blocks](
        x,
        y,
        saved,
        ends,
        limits,
        positions,
        count,
        blocks,
        *clip,
        float(rounding.levels),
        rounding.share,
        EIGHT=eight,
        LEVELS=rounding.levels != NO_LEVELS,
        N=power_of_two(blocks),
        R=tiles.rows,
        B=tiles.channels,
        num_warps=8,
    )
    return y, saved, limits


def backward(
    gradient: Tensor, x: Tensor, saved: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (P, C), gain and shift (C,)."""
    positions, channels = x.shape
    tiles = Tiles.of(positions, channels)
    count, eight = eights(channels)
    sums = saved.new_empty(tiles.groups * 2 * channels)
    _gradient_sums[tiles.groups, tiles.blocks](
        gradient,
        x,
        saved,
        limits,
        sums,
        positions,
        count,
        tiles.rows_of_group,
        EIGHT=eight,
        R=tiles.rows,
        B=tiles.channels,
        num_warps=8,
    )
    width = min(32, tiles.channels)
    of_channels = saved.new_empty(4, channels)
    _gradient_lines[(ceiling(channels, width),)](
        sums, saved, of_channels, positions, channels, tiles.groups, R=_ROWS, B=width
    )
    of_x = torch.empty_like(x)
    _gradient_of_x[ceiling(positions, tiles.rows), tiles.blocks](
        gradient,
        x,
        saved,
        limits,
        of_channels,
        of_x,
        positions,
        count,
        EIGHT=eight,
        R=tiles.rows,
        B=tiles.channels,
        num_warps=8,
    )
    return of_x, of_channels[0], of_channels[1]


@triton.jit(do_not_specialize=["P", "rows_of_group"])
def _sums(x, sums, P, C_, rows_of_group, EIGHT: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """(G, 4, C): sum, sum of squares, greatest and least of each channel."""
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    start = tl.program_id(0) * rows_of_group
    end = tl.minimum(start + rows_of_group, P)
    total = tl.zeros((R, B), tl.float32)
    square = tl.zeros((R, B), tl.float32)
    most = tl.full((R, B), float("-inf"), tl.float32)
    least = tl.full((R, B), float("inf"), tl.float32)
    for first in range(start, end, R):
        rows = first + tl.arange(0, R)
        there = (rows < end)[:, None] & (c < C)[None, :]
        v = tl.load(x + rows[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
        total += v
        square += v * v
        most = tl.maximum(most, tl.where(there, v, float("-inf")))
        least = tl.minimum(least, tl.where(there, v, float("inf")))
    at = sums + tl.program_id(0) * 4 * C + c
    tl.store(at, tl.sum(total, 0), mask=c < C)
    tl.store(at + C, tl.sum(square, 0), mask=c < C)
    tl.store(at + 2 * C, tl.max(most, 0), mask=c < C)
    tl.store(at + 3 * C, tl.min(least, 0), mask=c < C)


@triton.jit(do_not_specialize=["P", "C", "G", "eps"])
def _slopes(sums, gain, shift, saved, ends, P, C, G, eps, R: tl.constexpr, B: tl.constexpr):
    """What is saved, and the ends of what each block of channels becomes."""
    c = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.zeros((R, B), tl.float32)
    square = tl.zeros((R, B), tl.float32)
    most = tl.full((R, B), float("-inf"), tl.float32)
    least = tl.full((R, B), float("inf"), tl.float32)
    for first in range(0, G, R):
        groups = first + tl.arange(0, R)
        there = (groups < G)[:, None] & (c < C)[None, :]
        at = sums + groups[:, None] * (4 * C) + c[None, :]
        total += tl.load(at, mask=there, other=0.0)
        square += tl.load(at + C, mask=there, other=0.0)
        most = tl.maximum(most, tl.load(at + 2 * C, mask=there, other=float("-inf")))
        least = tl.minimum(least, tl.load(at + 3 * C, mask=there, other=float("inf")))
    mean = tl.sum(total, 0) / P
    variance = tl.maximum(tl.sum(square, 0) / P - mean * mean, 0.0)
    inverse = 1.0 / tl.sqrt(variance + eps)
    slope = tl.load(gain + c, mask=c < C, other=0.0) * inverse
    offset = tl.load(shift + c, mask=c < C, other=0.0) - mean * slope
    tl.store(saved + c, slope, mask=c < C)
    tl.store(saved + C + c, offset, mask=c < C)
    tl.store(saved + 2 * C + c, mean, mask=c < C)
    tl.store(saved + 3 * C + c, inverse, mask=c < C)
    one = tl.max(most, 0) * slope + offset
    other = tl.min(least, 0) * slope + offset
    low = tl.where(c < C, tl.minimum(one, other), float("inf"))
    high = tl.where(c < C, tl.maximum(one, other), float("-inf"))
    tl.store(ends + 2 * tl.program_id(0), tl.min(low, 0))
    tl.store(ends + 2 * tl.program_id(0) + 1, tl.max(high, 0))


@triton.jit(do_not_specialize=["P", "blocks", "lowest", "highest", "levels", "share"])
def _normalise(
    x,
    y,
    saved,
    ends,
    limits,
    P,
    C_,
    blocks,
    lowest,
    highest,
    levels,
    share,
    EIGHT: tl.constexpr,
    LEVELS: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    there = (rows < P)[:, None] & (c < C)[None, :]
    slope = tl.load(saved + c, mask=c < C, other=0.0)[None, :]
    offset = tl.load(saved + C + c, mask=c < C, other=0.0)[None, :]
    at = rows[:, None] * C + c[None, :]
    v = tl.load(x + at, mask=there, other=0.0).to(tl.float32) * slope + offset
    v = tl.minimum(tl.maximum(v, lowest), highest)
    first = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    if LEVELS:
        block = tl.arange(0, N)
        low = tl.min(tl.load(ends + 2 * block, mask=block < blocks, other=float("inf")), 0)
        high = tl.max(tl.load(ends + 2 * block + 1, mask=block < blocks, other=float("-inf")), 0)
        low = tl.minimum(tl.maximum(low, lowest), highest)
        high = tl.minimum(tl.maximum(high, lowest), highest)
        scale, zero = clipped_range(low, high, share, levels)
        v = onto_levels(v, scale, zero, levels)
        if first:
            tl.store(limits, tl.maximum(lowest, (-zero - 0.5) * scale))
            tl.store(limits + 1, tl.minimum(highest, (levels - zero + 0.5) * scale))
    else:
        if first:
            tl.store(limits, lowest)
            tl.store(limits + 1, highest)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["P", "rows_of_group"])
def _gradient_sums(
    gradient,
    x,
    saved,
    limits,
    sums,
    P,
    C_,
    rows_of_group,
    EIGHT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """(G, 2, C): sums of gradients, and of their products with x less its mean."""
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    start = tl.program_id(0) * rows_of_group
    end = tl.minimum(start + rows_of_group, P)
    slope = tl.load(saved + c, mask=c < C, other=0.0)[None, :]
    offset = tl.load(saved + C + c, mask=c < C, other=0.0)[None, :]
    mean = tl.load(saved + 2 * C + c, mask=c < C, other=0.0)[None, :]
    total = tl.zeros((R, B), tl.float32)
    product = tl.zeros((R, B), tl.float32)
    for first in range(start, end, R):
        rows = first + tl.arange(0, R)
        there = (rows < end)[:, None] & (c < C)[None, :]
        at = rows[:, None] * C + c[None, :]
        v = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
        y = v * slope + offset
        g = tl.where((y > tl.load(limits)) & (y < tl.load(limits + 1)), g, 0.0)
        total += g
        product += g * (v - mean)
    at = sums + tl.program_id(0) * 2 * C + c
    tl.store(at, tl.sum(total, 0), mask=c < C)
    tl.store(at + C, tl.sum(product, 0), mask=c < C)


@triton.jit(do_not_specialize=["P", "C", "G"])
def _gradient_lines(sums, saved, of_channels, P, C, G, R: tl.constexpr, B: tl.constexpr):
    """(4, C): gradients of gains and shifts, and what x is multiplied by and what is added in its
    own."""
    c = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.zeros((R, B), tl.float32)
    product = tl.zeros((R, B), tl.float32)
    for first in range(0, G, R):
        groups = first + tl.arange(0, R)
        there = (groups < G)[:, None] & (c < C)[None, :]
        at = sums + groups[:, None] * (2 * C) + c[None, :]
        total += tl.load(at, mask=there, other=0.0)
        product += tl.load(at + C, mask=there, other=0.0)
    slope = tl.load(saved + c, mask=c < C, other=0.0)
    mean = tl.load(saved + 2 * C + c, mask=c < C, other=0.0)
    inverse = tl.load(saved + 3 * C + c, mask=c < C, other=0.0)
    of_shift = tl.sum(total, 0)
    of_gain = tl.sum(product, 0) * inverse
    linear = -of_gain * inverse * slope / P
    tl.store(of_channels + c, of_gain, mask=c < C)
    tl.store(of_channels + C + c, of_shift, mask=c < C)
    tl.store(of_channels + 2 * C + c, linear, mask=c < C)
    tl.store(of_channels + 3 * C + c, -of_shift * slope / P - linear * mean, mask=c < C)


@triton.jit(do_not_specialize=["P"])
def _gradient_of_x(
    gradient,
    x,
    saved,
    limits,
    of_channels,
    of_x,
    P,
    C_,
    EIGHT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    rows = tl.program_id(0) * R + tl.arange(0, R)
    there = (rows < P)[:, None] & (c < C)[None, :]
    slope = tl.load(saved + c, mask=c < C, other=0.0)[None, :]
    offset = tl.load(saved + C + c, mask=c < C, other=0.0)[None, :]
    linear = tl.load(of_channels + 2 * C + c, mask=c < C, other=0.0)[None, :]
    constant = tl.load(of_channels + 3 * C + c, mask=c < C, other=0.0)[None, :]
    at = rows[:, None] * C + c[None, :]
    v = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
    y = v * slope + offset
    g = tl.where((y > tl.load(limits)) & (y < tl.load(limits + 1)), g, 0.0)
    g = g * slope + constant + v * linear
    tl.store(of_x + at, g.to(of_x.dtype.element_ty), mask=there)
