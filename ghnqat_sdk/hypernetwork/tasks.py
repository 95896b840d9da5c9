"""One kind of tensors with what decodes them, and the weights of many tiles made of few.

Letters: M tensors of one kind, R tiles of them, h hidden, K banks, k kernel positions, (A, B) tiles
along outputs and inputs of a weight, (a, b) those that are decoded, (o, i) channels of a tile's
corner, (O, I) channels of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.hypernetwork.assemble import Assemble, spatial
from ghnqat_sdk.hypernetwork.banks import Shares
from ghnqat_sdk.hypernetwork.places import mixture
from ghnqat_sdk.hypernetwork.tiles import Cut, Request, TileIndex


class Corner(NamedTuple):
    """What decodes the tiles of one group.

    Attributes:
        weight: (o, i, h), or (o, h).
        bias: (o, i), or (o,).
        bank: (K, k · o · i), None without banks.
    """

    weight: Tensor
    bias: Tensor
    bank: Tensor | None

    def values(self, hidden: Tensor) -> Tensor:
        """(R, k, h) to (R, k, o, i)"""
        weight = self.weight.flatten(0, -2)
        raw = F.linear(hidden.to(weight.dtype), weight, self.bias.flatten())
        return raw.unflatten(-1, self.bias.shape if self.bias.ndim == 2 else (-1, 1))


class Task(NamedTuple):
    """Tensors of one kind, with what decodes them.

    Attributes:
        requests: M of them.
        tiles: Where each of R tiles belongs.
        projected: (M, k, h).
        corner: None for vectors.
        outwards, inwards: (tiles, h) embeddings of places.
        shares: None without banks.
        channels_last: Layout of the weights of convolutions.
    """

    requests: Sequence[Request]
    tiles: TileIndex
    projected: Tensor
    corner: Corner | None
    outwards: Tensor
    inwards: Tensor
    shares: Shares | None
    channels_last: bool

    @property
    def first(self) -> Cut:
        """What all of them have in common is in each."""
        return self.requests[0].cut

    def hidden(self) -> Tensor:
        """(R, k, h)"""
        tiles = self.tiles
        two_sided = self.first.table != "vectors"
        if tiles.single:
            places = self.outwards[0] + (self.inwards[0] if two_sided else 0)
            return torch.relu(self.projected + places)
        places = self.outwards[tiles.out]
        if two_sided:
            places = places + self.inwards[tiles.into]
        return torch.relu(self.projected[tiles.member] + places.unsqueeze(1))

    def weights(self, hidden: Tensor) -> Sequence[Tensor]:
        """The tensors of a kind that is no vector, from (R, k, h)."""
        corner = self.corner
        assert corner is not None
        values = corner.values(hidden)  # (R, k, o, i)
        if self.first.large:
            return _large(self, corner, values)
        if corner.bank is not None and self.shares is not None:
            shares = self.shares.of(self.tiles).to(values.dtype)  # (R, K)
            values.flatten(1).addmm_(shares, corner.bank)  # in place: tiles are large
        if self.first.table == "grouped":
            return _grouped(values, self.requests)
        cuts = tuple(request.cut for request in self.requests)
        tensors = Assemble.apply(values, cuts, self.channels_last)
        return [_shaped(t, c, self.channels_last) for t, c in zip(tensors, cuts, strict=True)]


def _large(task: Task, corner: Corner, values: Tensor) -> list[Tensor]:
    """Weights of more tiles than are decoded, mixed from these and the banks."""
    tensors = []
    counts = [math.prod(request.cut.decoded) for request in task.requests]
    for member, table in enumerate(values.split(counts)):  # (a · b, k, o, i)
        piece = task.requests[member].cut
        tables = [table]
        parts = mixture(piece.tiles, piece.decoded).to(table)  # (A · B, a · b)
        if corner.bank is not None and task.shares is not None:
            tiles = TileIndex.whole(member, piece, table.device)
            parts = torch.cat([parts, task.shares.of(tiles).to(table)], dim=1)
            tables.append(corner.bank.view(-1, *table.shape[1:]))
        mixed = _mixed(parts, tables, piece, task.channels_last)
        tensors.append(_shaped(mixed, piece, task.channels_last))
    return tensors


def _grouped(values: Tensor, requests: Sequence[Request]) -> list[Tensor]:
    """The blocks of dense weights that groups keep, from (R, k, t, t)."""
    tensors = []
    start = 0
    for request in requests:
        piece = request.cut
        places, *indices = piece.grouped
        rows = values[start : start + len(places)]
        index = tuple(t.to(values.device) for t in indices)
        weight = rows.permute(0, 2, 3, 1)[index].float() * piece.factor  # (O, I, k)
        tensors.append(spatial(weight, piece.shape))
        start += len(places)
    return tensors


def _mixed(parts: Tensor, tables: Sequence[Tensor], piece: Cut, channels_last: bool) -> Tensor:
    """(A · B, p) parts of (…, k, o, i) tables, p in all, to (O, k, I) or (O, I, k)."""
    parts = (parts * piece.factor).view(*piece.tiles, -1)  # (A, B, p)
    outputs = piece.matrix[0]
    if not channels_last and not torch.is_grad_enabled():
        return _mixed_row_by_row(parts, tables, piece)
    if channels_last:
        whole = _inputs(_mixed_channels_last(parts, tables)[:outputs], 2, piece)
    else:
        whole = _inputs(_mixed_in_rows(parts, tables)[:outputs], 1, piece)
    return whole.float().contiguous()


def _inputs(whole: Tensor, axis: int, piece: Cut) -> Tensor:
    """Of all channels of the tiles along inputs, which lie along an axis, those of the tensor."""
    channels = piece.channels
    if channels is None:
        return whole.narrow(axis, 0, piece.matrix[1])
    return whole.index_select(axis, channels.to(whole.device))


def _mixed_channels_last(parts: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """(A, B, p) parts of (…, k, o, i) tables to (A · o, k, B · i)."""
    shares = parts.flatten(0, 1).split([len(table) for table in tables], dim=1)
    flat = shares[0] @ tables[0].flatten(1)
    for share, table in zip(shares[1:], tables[1:], strict=True):
        flat = torch.addmm(flat, share, table.flatten(1))
    tiles = flat.view(*parts.shape[:2], *tables[0].shape[1:])
    return tiles.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)


def _by_output(tables: Sequence[Tensor]) -> Tensor:
    """(…, k, o, i) tables, p in all, to (o, p, i · k)."""
    return torch.cat([table.permute(2, 0, 3, 1) for table in tables], dim=1).flatten(2)


def _mixed_in_rows(parts: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """The same to (A · o, B · i, k)."""
    _, positions, out, into = tables[0].shape
    rows, columns = parts.shape[:2]
    whole = parts.unsqueeze(1) @ _by_output(tables)  # (A, o, B, i · k)
    return whole.view(rows * out, columns * into, positions)


def _mixed_row_by_row(parts: Tensor, tables: Sequence[Tensor], piece: Cut) -> Tensor:
    """(O, I, k) without gradients: the outputs of one tile after another, each written in its
    place."""
    _, positions, out, into = tables[0].shape
    by_output = _by_output(tables)
    outputs, inputs = piece.matrix
    whole = parts.new_empty(outputs, inputs, positions, dtype=torch.float32)
    tile = parts.new_empty(out, parts.shape[1], into * positions)
    channels = piece.channels
    for row, written in enumerate(whole.split(out)):
        torch.matmul(parts[row], by_output, out=tile)
        every = tile.view(out, -1, positions)[: len(written)].float()
        if channels is None:
            written.copy_(every[:, :inputs])
        else:
            torch.index_select(every, 1, channels.to(every.device), out=written)
    return whole


def _shaped(tensor: Tensor, piece: Cut, channels_last: bool) -> Tensor:
    """(O, k, I) or (O, I, k) to the tensor's shape."""
    return spatial(tensor.transpose(1, 2) if channels_last else tensor, piece.shape)
