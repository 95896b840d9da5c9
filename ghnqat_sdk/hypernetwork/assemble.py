"""Between tables, decoded tiles and tensors: copies whose gradients need no table of zeros.

Letters: R rows, one for each tile of each tensor, (A, B) tiles along outputs and inputs,
k = Kh · Kw kernel positions, (o, i) channels of a tile's corner, (O, I) channels of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.hypernetwork.tiles import Cut


class Corners(torch.autograd.Function):
    """Corners of one tensor; their gradients are added into one buffer."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, dtype: torch.dtype, *corners: tuple[slice, ...]
    ) -> tuple[Tensor, ...]:
        """`table` at each of `corners`, as tensors of their own of a dtype."""
        ctx.corners = corners
        ctx.shape = table.shape
        return tuple(table[corner].to(dtype, copy=True).contiguous() for corner in corners)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """One gradient for the whole table."""
        total = gradients[0].new_zeros(ctx.shape, dtype=torch.float32)
        for corner, gradient in zip(ctx.corners, gradients, strict=True):
            total[corner] += gradient
        return (total, None, *(None for _ in ctx.corners))


class Assemble(torch.autograd.Function):
    """(R, k, o, i) decoded tiles to the float32 tensors that they belong to, one copy for each.

    Args (of `apply`):
        values: (R, k, o, i).
        cuts: One for each tensor, in the order of their rows.
        channels_last: Whether the channels of inputs, not the kernel's positions, lie next to each
            other in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, cuts: tuple[Cut, ...], channels_last: bool
    ) -> tuple[Tensor, ...]:
        """Tensors (O, k, I) as channels_last, (O, I, k) otherwise."""
        ctx.cuts = cuts
        ctx.channels_last = channels_last
        ctx.shape = values.shape
        ctx.dtype = values.dtype
        rows = values.split([math.prod(piece.tiles) for piece in cuts])
        return tuple(
            _as_tensor(of_piece, piece, channels_last)
            for of_piece, piece in zip(rows, cuts, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        """(R, k, o, i)"""
        total = torch.zeros(ctx.shape, dtype=ctx.dtype, device=gradients[0].device)
        rows = total.split([math.prod(piece.tiles) for piece in ctx.cuts])
        for of_piece, piece, gradient in zip(rows, ctx.cuts, gradients, strict=True):
            along = gradient if ctx.channels_last else gradient.transpose(1, 2)  # (O, k, I)
            _put_gradient(of_piece, piece, along * piece.factor)
        return total, None, None


def _as_tensor(rows: Tensor, piece: Cut, channels_last: bool) -> Tensor:
    """(A · B, k, o, i) to (O, k, I), or to (O, I, k), in memory of its own."""
    a, b = piece.tiles
    positions, out, into = rows.shape[1:]
    tiles = rows.unflatten(0, piece.tiles)  # (A, B, k, o, i)
    if channels_last:
        whole = rows.new_empty(a * out, positions, b * into, dtype=torch.float32)
        places = whole.view(a, out, positions, b, into).permute(0, 3, 2, 1, 4)
    else:
        whole = rows.new_empty(a * out, b * into, positions, dtype=torch.float32)
        places = whole.view(a, out, b, into, positions).permute(0, 2, 4, 1, 3)
    torch.mul(tiles, piece.factor, out=places)
    outputs, inputs = piece.matrix
    channels = piece.channels
    if channels is None:
        whole = whole[:outputs, :, :inputs] if channels_last else whole[:outputs, :inputs]
        return whole.contiguous()
    if piece.by_output:
        return whole.index_select(0, channels.to(whole.device))
    return whole[:outputs].index_select(2 if channels_last else 1, channels.to(whole.device))


def _put_gradient(rows: Tensor, piece: Cut, gradient: Tensor) -> None:
    """(O, k, I) to the rows (A · B, k, o, i) of a tensor, in place."""
    a, b = piece.tiles
    positions, out, into = rows.shape[1:]
    channels = piece.channels
    if channels is not None:
        axis, length = (0, a * out) if piece.by_output else (2, b * into)
        gradient = _scattered(gradient, axis, channels, length)
    outputs, _, inputs = gradient.shape
    if len(rows) == 1:
        rows[0, :, :outputs, :inputs] = gradient.transpose(0, 1)
        return
    padded = F.pad(gradient, (0, b * into - inputs, 0, 0, 0, a * out - outputs))
    tiles = padded.view(a, out, positions, b, into).permute(0, 3, 2, 1, 4)
    rows.view(a, b, positions, out, into).copy_(tiles)


def _scattered(gradient: Tensor, axis: int, channels: Tensor, length: int) -> Tensor:
    """What came from some channels of an axis of `length`, in their places among zeros."""
    shape = list(gradient.shape)
    shape[axis] = length
    return gradient.new_zeros(shape).index_copy_(axis, channels.to(gradient.device), gradient)


def spatial(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """(O, I, k) to `shape` without a copy.

    A kernel in three dimensions is repeated along its depth.
    """
    if len(shape) == 5:
        flat = weight.unflatten(2, (1, *shape[3:]))
        return (flat / math.sqrt(shape[2])).expand(*shape)
    return weight.unflatten(2, tuple(shape[2:])) if len(shape) > 2 else weight.reshape(*shape)
