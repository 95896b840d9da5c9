"""The gradients of norms.py: sums of groups of rows, lines of channels, then each number."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghnqat_sdk.training.gpu.norms import ROWS
from ghnqat_sdk.training.gpu.numbers import Tiles, ceiling, eights


def backward(
    gradient: Tensor, x: Tensor, saved: Tensor, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (P, C), gain and shift (C,)."""
    positions, channels = x.shape
    tiles = Tiles.of(positions, channels)
    count, eight = eights(channels)
    given = (gradient, x, saved, limits)
    sums = saved.new_empty(tiles.groups * 2 * channels)
    _gradient_sums[tiles.groups, tiles.blocks](
        *given, sums, positions, count, tiles.rows_of_group, EIGHT=eight, **tiles.constants
    )
    width = min(32, tiles.channels)
    of_channels = saved.new_empty(4, channels)
    sizes = (positions, channels, tiles.groups)
    _gradient_lines[(ceiling(channels, width),)](sums, saved, of_channels, *sizes, R=ROWS, B=width)
    of_x = torch.empty_like(x)
    _gradient_of_x[ceiling(positions, tiles.rows), tiles.blocks](
        *given, of_channels, of_x, positions, count, EIGHT=eight, **tiles.constants
    )
    return of_x, of_channels[0], of_channels[1]


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
