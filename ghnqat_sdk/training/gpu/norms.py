"""Batch norm, activation, clip and round on a GPU; eager.py says what each function gives.

Extremes and sums of groups of rows; from them slopes and offsets of channels and the ends of blocks
of channels; then each number.
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

ROWS = 64  # of groups at a time, when they are added up


def forward(
    x: Tensor, gain: Tensor, shift: Tensor, eps: float, clip: Clip, rounding: ActivationRounding
) -> tuple[Tensor, Tensor, Tensor]:
    """y (P, C), saved (4, C) slopes, offsets, means and inverse deviations, and limits (2,)."""
    positions, channels = x.shape
    tiles = Tiles.of(positions, channels)
    shape = (positions, *eights(channels))
    saved, ends = _statistics(x, tiles, gain.contiguous(), shift.contiguous(), eps)
    y, limits = torch.empty_like(x), gain.new_empty(2)
    blocks = len(ends) // 2
    numbers = (blocks, *clip, float(rounding.levels), rounding.share)
    _normalise[ceiling(positions, tiles.rows), tiles.blocks](
        x,
        y,
        saved,
        ends,
        limits,
        *shape[:2],
        *numbers,
        EIGHT=shape[2],
        LEVELS=rounding.levels != NO_LEVELS,
        N=power_of_two(blocks),
        **tiles.constants,
    )
    return y, saved, limits


def _statistics(
    x: Tensor, tiles: Tiles, gain: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """What is saved, and the ends (2 · blocks,) of what each block of channels becomes."""
    positions, channels = x.shape
    count, eight = eights(channels)
    sums = gain.new_empty(tiles.groups * 4 * channels)
    _sums[tiles.groups, tiles.blocks](
        x, sums, positions, count, tiles.rows_of_group, EIGHT=eight, **tiles.constants
    )
    width = min(32, tiles.channels)
    blocks = ceiling(channels, width)
    saved, ends = gain.new_empty(4, channels), gain.new_empty(2 * blocks)
    sizes = (positions, channels, tiles.groups)
    _slopes[(blocks,)](sums, gain, shift, saved, ends, *sizes, eps, R=ROWS, B=width)
    return saved, ends


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
