"""How a parameter is cut into tiles of channels, and which places these have.

Letters: M tensors, R tiles of them, (A, B) tiles along outputs and inputs, (o, i) channels of a
tile's corner, (O, I) channels of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.graph.channels import Runs, count_of
from ghnqat_sdk.graph.graph import Node, ParameterSpec
from ghnqat_sdk.hypernetwork.places import channel_tiles, corner_size, grouped_places, tiles_of
from ghnqat_sdk.hypernetwork.scaling import VECTOR_ROLES, weight_factor

Table = Literal["dense", "grouped", "depthwise", "classes", "vectors"]

BASIS = 4
"""Tiles along each side of a large weight that are decoded; the others are mixed from them."""

_ALONG_INPUTS = ("weight", "scale", "shift", "slope")
"""Roles of parameters that meet what their node reads; biases are added behind it."""


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
        factor: See `weight_factor`, 1 for vectors; and `norm_factors`.
        role: Of the parameter.
        reads: Parts that the channels along its inputs come from, or along its outputs where each
            output is made of one input; each part begins a tile of its own. () where channels stand
            as they are counted.
        channels: Where each of these channels stands in the tiles; None where that is as counted,
            and of grouped convolutions, see `grouped`.
        most: Tiles that are all decoded.
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
    reads: Runs = ()
    channels: Tensor | None = None
    most: int = BASIS**2

    def times(self, factor: float) -> Cut:
        """The cut of a parameter that is so many times as large."""
        return self._replace(factor=self.factor * factor)

    @property
    def group(self) -> tuple[object, ...]:
        """What tensors that are decoded together have in common."""
        if self.table == "vectors":
            return self.table, self.role
        return self.table, self.kernel, self.corner, self.large

    @property
    def large(self) -> bool:
        """Whether only some of its tiles are decoded, and the others mixed from them."""
        return self.table == "dense" and math.prod(self.tiles) > self.most

    @property
    def decoded(self) -> tuple[int, int]:
        """Tiles along outputs and inputs that are decoded."""
        if not self.large:
            return self.tiles
        outwards, inwards = self.tiles
        return min(outwards, BASIS), min(inwards, BASIS)

    @property
    def places(self) -> list[tuple[int, int]]:
        """(tile along outputs, tile along inputs) of each decoded tile."""
        if self.table == "grouped":
            places, *_ = self.grouped
            return list(places)
        return _grid(self.decoded)

    @property
    def grouped(self) -> tuple[tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]:
        """See `grouped_places`."""
        return grouped_places(self.matrix, self.groups, self.corner[0], self.reads)

    @property
    def by_output(self) -> bool:
        """Whether each output is made of one input, so that outputs are what a layer reads."""
        return self.table in ("depthwise", "vectors")


def cut(
    node: Node, parameter: ParameterSpec, tile: int, num_classes: int, follows: bool = False
) -> Cut:
    """How the parameter of a node is cut into tiles of `tile` × `tile` channels.

    Args:
        node: The node.
        parameter: One of its parameters.
        tile: Channels of a tile along each side.
        num_classes: Of the hypernetwork.
        follows: Whether each part of what a layer reads begins a tile of its own.
    """
    piece = _counted(node, parameter, tile, num_classes)
    if follows and node.reads and _is_along_inputs(piece, node):
        return _followed(piece, node.reads, tile)
    return piece


def _is_along_inputs(piece: Cut, node: Node) -> bool:
    """Whether a parameter has a number, or a column, for each channel that its node reads."""
    if node.op == "transposed_conv" or piece.role not in _ALONG_INPUTS:
        return False
    channels = piece.matrix[0] if piece.by_output else piece.matrix[1] * piece.groups
    return count_of(node.reads) == channels


def _followed(piece: Cut, reads: Runs, tile: int) -> Cut:
    """The cut of a parameter whose channels come from several parts."""
    if piece.table == "grouped":
        return piece._replace(reads=reads)
    placed = channel_tiles(reads, tile)
    length = tile if piece.table == "vectors" else placed.corner
    corner, tiles = (length, 1), (placed.tiles, 1)
    if not piece.by_output:
        corner, tiles = (piece.corner[0], length), (piece.tiles[0], placed.tiles)
    return piece._replace(
        corner=corner,
        tiles=tiles,
        reads=reads,
        channels=placed.places(length),
        most=(BASIS * tile) ** 2 // math.prod(corner),
    )


def _counted(node: Node, parameter: ParameterSpec, tile: int, num_classes: int) -> Cut:
    """The cut of a parameter whose channels stand as they are counted."""
    shape = parameter.shape
    role = parameter.role
    if role in VECTOR_ROLES:
        length = math.prod(shape)
        tiles = (tiles_of(length, tile), 1)
        return Cut("vectors", (1, 1), (tile, 1), tiles, shape, (length, 1), 1, 1.0, role)
    factor = weight_factor(node, parameter)
    if node.op == "classifier" and shape[0] == num_classes and role == "weight":
        columns = math.prod(shape[1:])
        corner = (num_classes, corner_size(columns, tile))
        tiles = (1, tiles_of(columns, tile))
        return Cut("classes", (1, 1), corner, tiles, shape, (num_classes, columns), 1, factor, role)
    return _cut_weight(node, parameter, tile, factor)


def _cut_weight(node: Node, parameter: ParameterSpec, tile: int, factor: float) -> Cut:
    """Of a weight that is no classifier's."""
    shape = parameter.shape
    role = parameter.role
    kernel = kernel_of(shape)
    rows = shape[0]
    columns = shape[1] if len(shape) > 1 else 1
    if node.op == "depthwise_conv":
        corner = (corner_size(rows, tile), 1)
        tiles = (tiles_of(rows, tile), 1)
        return Cut("depthwise", kernel, corner, tiles, shape, (rows, 1), 1, factor, role)
    matrix = (rows, columns)
    if node.op == "grouped_conv":
        corner = (tile, tile)
        tiles = (tiles_of(rows, tile), tiles_of(columns * node.groups, tile))
        return Cut("grouped", kernel, corner, tiles, shape, matrix, node.groups, factor, role)
    corner = (corner_size(rows, tile), corner_size(columns, tile))
    tiles = (tiles_of(rows, tile), tiles_of(columns, tile))
    return Cut("dense", kernel, corner, tiles, shape, matrix, 1, factor, role)


def _grid(tiles: tuple[int, int]) -> list[tuple[int, int]]:
    """The places of tiles, row by row."""
    return [(a, b) for a in range(tiles[0]) for b in range(tiles[1])]


def kernel_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a kernel.

    (1, 1) for a matrix, (1, K) in one dimension, the last two in three.
    """
    sides = (1, 1, *shape[2:])
    return sides[-2], sides[-1]


def slices(piece: Cut) -> tuple[slice, ...]:
    """The corner of a table that a cut needs."""
    if piece.table == "depthwise":
        return (slice(0, piece.corner[0]),)
    return slice(0, piece.corner[0]), slice(0, piece.corner[1])


def centre(kernel: tuple[int, int], size: int) -> tuple[slice, slice]:
    """The positions of a table of `size` × `size` that a kernel needs."""
    starts = [max(0, (size - length) // 2) for length in kernel]
    rows, columns = (
        slice(start, start + min(length, size))
        for start, length in zip(starts, kernel, strict=True)
    )
    return rows, columns


def centred(table: Tensor, kernel: tuple[int, int], size: int) -> Tensor:
    """(s, s, ...) weights of kernel positions to the (Kh, Kw, ...) of a kernel.

    A smaller kernel has the centre. Around a table smaller than `size` lie zeros, and a kernel
    larger than `size` has the nearest position everywhere.
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


class Request(NamedTuple):
    """Decode one parameter of one node."""

    row: int
    """Of the node, among all embeddings."""
    cut: Cut


class TileIndex(NamedTuple):
    """Index tensors of the R tiles of M tensors.

    Attributes:
        member: (R,) tensor of each tile.
        out, into: (R,) place of each tile.
        single: Whether each tensor is one tile.
    """

    member: Tensor
    out: Tensor
    into: Tensor
    single: bool

    @classmethod
    def of(cls, requests: Sequence[Request], device: torch.device) -> TileIndex:
        """The tiles that are decoded."""
        return cls._from([request.cut.places for request in requests], device)

    @classmethod
    def whole(cls, member: int, piece: Cut, device: torch.device) -> TileIndex:
        """All tiles of one tensor."""
        before: list[list[tuple[int, int]]] = [[]] * member
        return cls._from([*before, _grid(piece.tiles)], device)

    @classmethod
    def _from(cls, places: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> TileIndex:
        triples = [(m, *place) for m, of_member in enumerate(places) for place in of_member]
        member, out, into = torch.tensor(triples, device=device).unbind(1)
        first_alone = all(triple[1:] == (0, 0) for triple in triples)
        return cls(member, out, into, first_alone and len(triples) == len(places))
