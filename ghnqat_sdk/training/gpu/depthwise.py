"""Depthwise convolutions on a GPU, in any geometry, with channels next to each other in memory.

Letters beside those of the room: N images, (H, W) their sides, (OH, OW) those of the output,
(KH, KW) of the kernel, k = KH · KW, (sh, sw) strides, (ph, pw) paddings, (dh, dw) dilations.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghnqat_sdk.training.gpu.numbers import as_rows, ceiling, eights, power_of_two

_TILE = 2048
_MOST_GROUPS = 64
_ENOUGH_PROGRAMS = 1056

Pairs = Sequence[tuple[int, int]]
"""Stride, padding and dilation."""

_SIZES = ["N", "H", "W", "OH", "OW", "KH", "KW", "sh", "sw", "ph", "pw", "dh", "dw"]


def forward(x: Tensor, weight: Tensor, geometry: Pairs) -> Tensor:
    """x (N, C, H, W) with a weight (C, 1, Kh, Kw) to (N, C, OH, OW), channels_last."""
    sizes, tile = _sizes_of(x, weight, geometry)
    count, _, _, _, height, width = sizes[:6]
    rows = x.new_empty(count, height, width, x.shape[1])
    grid = _grid(count * height * width, x.shape[1], tile)
    _convolve[grid](as_rows(x), _taps(weight), rows, *sizes, **tile, num_warps=4)
    return rows.permute(0, 3, 1, 2)


def of_input(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Pairs) -> Tensor:
    """The gradient of x, channels_last."""
    sizes, tile = _sizes_of(x, weight, geometry)
    count, channels, height, width = x.shape
    rows = gradient.new_empty(count, height, width, channels)
    grid = _grid(count * height * width, channels, tile)
    _spread[grid](as_rows(gradient), _taps(weight), rows, *sizes, **tile, num_warps=4)
    return rows.permute(0, 3, 1, 2)


def of_weight(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Pairs) -> Tensor:
    """The gradient of the weight."""
    sizes, tile = _sizes_of(x, weight, geometry)
    channels, taps = x.shape[1], weight[0, 0].numel()
    positions = gradient.numel() // channels
    blocks = ceiling(channels, tile["B"])
    groups = min(
        _MOST_GROUPS,
        ceiling(positions, 4 * tile["R"]),
        ceiling(_ENOUGH_PROGRAMS, taps * blocks),
    )
    of_group = ceiling(ceiling(positions, max(1, groups)), tile["R"]) * tile["R"]
    groups = ceiling(positions, of_group)
    sums = torch.empty(groups, taps, channels, device=x.device)
    _gather[groups, blocks, taps](
        as_rows(gradient), as_rows(x), sums, *sizes, of_group, **tile, num_warps=4
    )
    return sums.sum(0).t().reshape(weight.shape).to(weight.dtype)


def _taps(weight: Tensor) -> Tensor:
    """(C, 1, Kh, Kw) to (k, C)"""
    return weight.flatten(1).t().contiguous()


def _sizes_of(x: Tensor, weight: Tensor, geometry: Pairs) -> tuple[tuple[int, ...], dict[str, int]]:
    """All sizes in the order of the kernels' arguments, and those of a tile."""
    count, channels, *sides = x.shape
    kernel = weight.shape[2:]
    outputs = [
        (side + 2 * p - d * (k - 1) - 1) // s + 1
        for side, k, s, p, d in zip(sides, kernel, *geometry, strict=True)
    ]
    parts, eight = eights(channels)
    width = min(64, max(8, power_of_two(channels)))
    pairs = (size for pair in geometry for size in pair)
    sizes = (count, *sides, parts, *outputs, *kernel, *pairs)
    return sizes, {"EIGHT": eight, "R": _TILE // width, "B": width}


def _grid(positions: int, channels: int, tile: dict[str, int]) -> tuple[int, int]:
    return ceiling(positions, tile["R"]), ceiling(channels, tile["B"])


@triton.jit(do_not_specialize=_SIZES)
def _convolve(
    x,
    taps,
    y,
    N,
    H,
    W,
    C_,
    OH,
    OW,
    KH,
    KW,
    sh,
    sw,
    ph,
    pw,
    dh,
    dw,
    EIGHT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    p = tl.program_id(0) * R + tl.arange(0, R)
    oh = (p // OW) % OH
    n = p // (OW * OH)
    total = tl.zeros((R, B), tl.float32)
    for i in range(0, KH):
        h = oh * sh - ph + i * dh
        rows = (p < N * OH * OW) & (h >= 0) & (h < H)
        for j in range(0, KW):
            w = (p % OW) * sw - pw + j * dw
            there = (rows & (w >= 0) & (w < W))[:, None] & (c < C)[None, :]
            at = ((n * H + h) * W + w)[:, None] * C + c[None, :]
            v = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
            tap = tl.load(taps + (i * KW + j) * C + c, mask=c < C, other=0.0).to(tl.float32)
            total += v * tap[None, :]
    there = (p < N * OH * OW)[:, None] & (c < C)[None, :]
    tl.store(y + p[:, None] * C + c[None, :], total.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_SIZES)
def _spread(
    gradient,
    taps,
    of_x,
    N,
    H,
    W,
    C_,
    OH,
    OW,
    KH,
    KW,
    sh,
    sw,
    ph,
    pw,
    dh,
    dw,
    EIGHT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    p = tl.program_id(0) * R + tl.arange(0, R)
    h = (p // W) % H
    n = p // (W * H)
    total = tl.zeros((R, B), tl.float32)
    for i in range(0, KH):
        down = h + ph - i * dh
        rows = (p < N * H * W) & (down >= 0) & (down % sh == 0) & (down // sh < OH)
        for j in range(0, KW):
            right = (p % W) + pw - j * dw
            columns = (right >= 0) & (right % sw == 0) & (right // sw < OW)
            there = (rows & columns)[:, None] & (c < C)[None, :]
            at = ((n * OH + down // sh) * OW + right // sw)[:, None] * C + c[None, :]
            g = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
            tap = tl.load(taps + (i * KW + j) * C + c, mask=c < C, other=0.0).to(tl.float32)
            total += g * tap[None, :]
    there = (p < N * H * W)[:, None] & (c < C)[None, :]
    tl.store(of_x + p[:, None] * C + c[None, :], total.to(of_x.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=[*_SIZES, "of_group"])
def _gather(
    gradient,
    x,
    sums,
    N,
    H,
    W,
    C_,
    OH,
    OW,
    KH,
    KW,
    sh,
    sw,
    ph,
    pw,
    dh,
    dw,
    of_group,
    EIGHT: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """(G, k, C): each group's gradient of the weight."""
    C = C_ * EIGHT
    c = tl.program_id(1) * B + tl.arange(0, B)
    tap = tl.program_id(2)
    start = tl.program_id(0) * of_group
    end = tl.minimum(start + of_group, N * OH * OW)
    total = tl.zeros((R, B), tl.float32)
    for first in range(start, end, R):
        p = first + tl.arange(0, R)
        h = ((p // OW) % OH) * sh - ph + (tap // KW) * dh
        w = (p % OW) * sw - pw + (tap % KW) * dw
        rows = (p < end) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        there = rows[:, None] & (c < C)[None, :]
        at = (((p // (OW * OH)) * H + h) * W + w)[:, None] * C + c[None, :]
        v = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        g = tl.load(gradient + p[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
        total += g * v
    at = sums + (tl.program_id(0) * KH * KW + tap) * C + c
    tl.store(at, tl.sum(total, 0), mask=c < C)
