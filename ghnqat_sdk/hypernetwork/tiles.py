"""How a parameter is cut into tiles of channels, and how decoded tiles become its tensor.

Letters: R rows, one for each tile of each tensor, (A, B) tiles along outputs and inputs, k = Kh · Kw kernel positions,
(o, i) channels of a tile's corner, (O, I) channels of a weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.graph.graph import Node, ParameterSpec
from ghnqat_sdk.hypernetwork.scaling import VECTOR_ROLES, weight_factor

Table = Literal["dense", "grouped", "depthwise", "classes", "vectors"]

BASIS = 4
"""Tiles along outputs and along inputs of a large weight that are decoded; the others are mixed from them."""

_CORNERS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes that channels of a tile are rounded up to, so that tensors of nearly one size are decoded together."""

_MIXED = 0.3
"""Size of what is mixed into a tile beyond the basis, relative to the tile that is repeated there."""

_PLACE_FEATURES = 16


class Cut(NamedTuple):
    """How one parameter is decoded; parameters of one `group` are decoded together.

    Attributes:
        table: What decodes it.
        kernel: (Kh, Kw), (1, 1) for matrices and vectors.
        corner: (o, i), channels of the part of a tile that is decoded.
        tiles: (A, B).
        shape: Of the tensor.
        matrix: (O, I), channels of the tensor as a matrix for each kernel position.
        groups: Of a grouped convolution.
        factor: See `weight_factor`; 1 for vectors.
        role: Of the parameter.
    """

    table: Table
    kernel: tuple[int, int]
    corner: tuple[int, int]
    tiles: tuple[int, int]
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    groups: int
    factor: float
    role: str

    @property
    def group(self) -> tuple[object, ...]:
        """What tensors that are decoded together have in common."""
        if self.table == "vectors":
            return self.table, self.role
        return self.table, self.kernel, self.corner, self.large

    @property
    def large(self) -> bool:
        """Whether only some of its tiles are decoded, and the others mixed from them."""
        return self.table == "dense" and math.prod(self.tiles) > BASIS**2

    @property
    def decoded(self) -> tuple[int, int]:
        """Tiles along outputs and inputs that are decoded."""
        return (min(self.tiles[0], BASIS), min(self.tiles[1], BASIS)) if self.large else self.tiles

    @property
    def places(self) -> list[tuple[int, int]]:
        """(tile along outputs, tile along inputs) of each decoded tile."""
        if self.table == "grouped":
            return list(grouped_places(self.matrix, self.groups, self.corner[0])[0])
        return [(a, b) for a in range(self.decoded[0]) for b in range(self.decoded[1])]


def cut(node: Node, parameter: ParameterSpec, tile: int, num_classes: int) -> Cut:
    """How the parameter of a node is cut into tiles of `tile` × `tile` channels."""
    shape, role = parameter.shape, parameter.role
    if role in VECTOR_ROLES:
        length = math.prod(shape)
        tiles = (_tiles(length, tile), 1)
        return Cut("vectors", (1, 1), (tile, 1), tiles, shape, (length, 1), 1, 1.0, role)
    factor = weight_factor(node, parameter)
    if node.op == "classifier" and shape[0] == num_classes and role == "weight":
        columns = math.prod(shape[1:])
        corner = (num_classes, corner_size(columns, tile))
        tiles = (1, _tiles(columns, tile))
        return Cut("classes", (1, 1), corner, tiles, shape, (num_classes, columns), 1, factor, role)
    rows, columns = shape[0], shape[1] if len(shape) > 1 else 1
    kernel = kernel_of(shape)
    if node.op == "depthwise_conv":
        corner, tiles = (corner_size(rows, tile), 1), (_tiles(rows, tile), 1)
        return Cut("depthwise", kernel, corner, tiles, shape, (rows, 1), 1, factor, role)
    if node.op == "grouped_conv":
        tiles = (_tiles(rows, tile), _tiles(columns * node.groups, tile))
        corner = (tile, tile)
        return Cut(
            "grouped", kernel, corner, tiles, shape, (rows, columns), node.groups, factor, role
        )
    corner = (corner_size(rows, tile), corner_size(columns, tile))
    tiles = (_tiles(rows, tile), _tiles(columns, tile))
    return Cut("dense", kernel, corner, tiles, shape, (rows, columns), 1, factor, role)


def _tiles(count: int, tile: int) -> int:
    """Tiles that `count` channels take."""
    return math.ceil(count / tile)


def corner_size(count: int, tile: int) -> int:
    """Channels of a tile that are decoded for a tensor of `count` channels."""
    return min(tile, next((size for size in _CORNERS if size >= count), tile))


def kernel_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a kernel: (1, 1) for a matrix, (1, K) in one dimension, the last two in three."""
    spatial = tuple(shape[2:])[-2:]
    return ((1, 1), (1, *spatial), spatial)[len(spatial)]  # type: ignore[return-value]


def slices(piece: Cut) -> tuple[slice, ...]:
    """The corner of a table that a cut needs."""
    if piece.table == "depthwise":
        return (slice(0, piece.corner[0]),)
    return slice(0, piece.corner[0]), slice(0, piece.corner[1])


def centre(kernel: tuple[int, int], size: int) -> tuple[slice, slice]:
    """The positions of a table of `size` × `size` that a kernel needs."""
    starts = [max(0, (size - length) // 2) for length in kernel]
    rows, columns = (
        slice(s, s + min(length, size)) for s, length in zip(starts, kernel, strict=True)
    )
    return rows, columns


def centred(table: Tensor, kernel: tuple[int, int], size: int) -> Tensor:
    """(s, s, ...) weights of kernel positions to the (Kh, Kw, ...) of a kernel.

    A smaller kernel has the centre. Around a table smaller than `size` lie zeros, and a kernel larger than `size` has
    the nearest position everywhere.
    """
    for axis, length in enumerate(kernel):
        have = table.shape[axis]
        if length > size:
            nearest = (torch.arange(length, device=table.device) * have + have // 2) // length
            table = table.index_select(axis, nearest)
        elif length < have:
            table = table.narrow(axis, (have - length) // 2, length)
        elif length > have:
            before = (length - have + 1) // 2
            padding = [0] * (2 * (table.ndim - axis))
            padding[-2:] = [before, length - have - before]
            table = F.pad(table, padding)
    return table


@functools.cache
def grouped_places(
    matrix: tuple[int, int], groups: int, tile: int
) -> tuple[tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]:
    """The tiles of the dense weight that a grouped one is cut from, and where its numbers lie in them.

    A channel then means the same in both.

    Returns:
        places: (tile along outputs, tile along inputs) of each of R tiles.
        row, out, into: (O, I) indices: the tile among R, and the channels in it.
    """
    outputs, depth = matrix
    size = outputs // groups
    at = torch.arange(outputs).unsqueeze(1)
    inputs = at // size * depth + torch.arange(depth)  # (O, I)
    pairs = torch.stack([(at // tile).expand_as(inputs), inputs // tile], dim=-1)
    unique, row = pairs.flatten(0, 1).unique(dim=0, return_inverse=True)
    places = tuple((a, b) for a, b in unique.tolist())
    return places, row.view_as(inputs), (at % tile).expand_as(inputs), inputs % tile


@functools.cache
def mixture(tiles: tuple[int, int], decoded: tuple[int, int]) -> Tensor:
    """(A · B, a · b): how much of each decoded tile is in each tile of a weight; rows have unit norm.

    Each is the tile that a repetition would put there, with a little of all of them in proportions of its own, so that
    no filter is a copy of another.
    """
    across = torch.arange(math.prod(tiles))
    repeated = across // tiles[1] % decoded[0] * decoded[1] + across % tiles[1] % decoded[1]
    count = math.prod(decoded)
    # Quadratic phases: as good as random, and the same everywhere.
    phases = torch.arange(1, len(across) * count + 1, dtype=torch.float64).view(-1, count)
    little = F.normalize((phases**2 * ((1 + math.sqrt(5)) / 2)).frac() - 0.5, dim=1) * _MIXED
    return F.normalize(F.one_hot(repeated, count) + little, dim=1).float()


@functools.cache
def place_features(tiles: int) -> Tensor:
    """(tiles, 16): sines and cosines of a tile's index, all different below 256 tiles, zeros for the first."""
    periods = 2.0 ** torch.arange(1, _PLACE_FEATURES // 2 + 1, dtype=torch.float32)
    angles = torch.arange(tiles).unsqueeze(1) * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos() - 1], dim=1)


PLACE_FEATURES = _PLACE_FEATURES


class Corners(torch.autograd.Function):
    """Corners of one tensor; their gradients are added into one buffer instead of a table of zeros for each."""

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
    """(R, k, o, i) decoded tiles to the float32 tensors that they belong to, one copy for each tensor.

    Args (of `apply`):
        values: (R, k, o, i).
        cuts: One for each tensor, in the order of their rows.
        channels_last: Whether the channels of inputs, not the kernel's positions, lie next to each other in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, cuts: tuple[Cut, ...], channels_last: bool
    ) -> tuple[Tensor, ...]:
        """Tensors (O, k, I) as channels_last, (O, I, k) otherwise."""
        ctx.cuts, ctx.channels_last = cuts, channels_last
        ctx.shape, ctx.dtype = values.shape, values.dtype
        tensors, start = [], 0
        for piece in cuts:
            count = math.prod(piece.tiles)
            tiles = _as_tensor(values[start : start + count], piece, channels_last)
            outputs, inputs = piece.matrix
            whole = tiles[:outputs, :, :inputs] if channels_last else tiles[:outputs, :inputs]
            tensor = torch.mul(whole, piece.factor)
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                tensor = tensor.to(
                    torch.float32, memory_format=torch.contiguous_format
                ).contiguous()
            tensors.append(tensor)
            start += count
        return tuple(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        """(R, k, o, i)"""
        total = torch.zeros(ctx.shape, dtype=ctx.dtype, device=gradients[0].device)
        _, positions, out, into = ctx.shape
        start = 0
        for piece, gradient in zip(ctx.cuts, gradients, strict=True):
            count = math.prod(piece.tiles)
            scaled = gradient if ctx.channels_last else gradient.transpose(1, 2)  # (O, k, I)
            scaled = scaled * piece.factor
            outputs, inputs = piece.matrix
            a, b = piece.tiles
            tiles = total[start : start + count].view(a, b, positions, out, into)
            if count == 1:
                tiles[0, 0, :, :outputs, :inputs] = scaled.transpose(0, 1)
            else:
                scaled = F.pad(scaled, (0, b * into - inputs, 0, 0, 0, a * out - outputs))
                tiles.copy_(scaled.view(a, out, positions, b, into).permute(0, 3, 2, 1, 4))
            start += count
        return total, None, None


def _as_tensor(rows: Tensor, piece: Cut, channels_last: bool) -> Tensor:
    """(A · B, k, o, i) to (A · o, k, B · i), or to (A · o, B · i, k)."""
    a, b = piece.tiles
    tiles = rows.unflatten(0, (a, b))  # (A, B, k, o, i)
    if channels_last:
        return tiles.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)
    return tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def spatial(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """(O, I, k) to `shape` without a copy; a kernel in three dimensions is repeated along its depth."""
    if len(shape) == 5:
        return (weight.unflatten(2, (1, *shape[3:])) / math.sqrt(shape[2])).expand(*shape)
    return weight.unflatten(2, tuple(shape[2:])) if len(shape) > 2 else weight.reshape(*shape)
