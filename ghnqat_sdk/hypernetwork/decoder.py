"""Node embeddings to parameter tensors; tensors of one kind are decoded together, across networks.

A weight is decoded position by position (GHN-2's convolutional decoder, Knyazev et al. 2021) in tiles of 64 × 64
channels, and a mixture of banks is added: K tables of weights that all networks share, mixed by how deep a node stands,
so that channels mean the same in layers of one depth. Every tile has a place embedding that enters before the
nonlinearity and scales the mixture, so that a tensor larger than one tile is not a repetition of it: repeating a tile
leaves 64 distinct filters and rank 64. A weight of more than 16 tiles is made of its first 4 × 4 decoded ones and of
the banks, which costs a few multiply-adds for each number and keeps every filter distinct.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.hypernetwork.scaling import VECTOR_ROLES, scale_vectors
from ghnqat_sdk.hypernetwork.tiles import (
    PLACE_FEATURES,
    Assemble,
    Corners,
    Cut,
    centre,
    centred,
    grouped_places,
    mixture,
    place_features,
    slices,
    spatial,
)

_IDENTITY = 3.0
_BANK_SIZE = 3.0
"""What the mixture of banks is multiplied by: banks start at zero and learn faster for it."""


class DecoderConfig(BaseModel):
    """Sizes of the decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden: int = Field(128, ge=8, le=4096)
    """Channels between a node's embedding and a tile."""
    second: int = Field(0, ge=0, le=4096)
    """Channels of a second layer on top of the hidden ones; a tile is made of both. 0 for none."""
    tile: int = Field(64, ge=4, le=512)
    """Output and input channels of one tile."""
    kernel: int = Field(7, ge=1, le=31)
    """Kernel positions with weights of their own; smaller kernels use the centre, larger ones the nearest position."""
    banks: int = Field(16, ge=0, le=256)
    """Tables that are mixed by depth and added to the decoded tiles; 0 for none."""
    bank_kernel: int = Field(5, ge=1, le=31)
    """Kernel positions of a bank; it adds nothing outside of them."""


class Request(NamedTuple):
    """Decode one parameter of one node."""

    row: int
    """Of the node, among all embeddings."""
    cut: Cut


class Decoder(nn.Module):
    """Node embeddings to parameters.

    Letters: V nodes, d embedding, h hidden, t tile, K banks, M tensors of one kind, R tiles of them, k kernel
    positions, (o, i) channels of a tile's corner.
    """

    def __init__(self, config: DecoderConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        hidden, tile, kernel = config.hidden, config.tile, config.kernel
        # Node embeddings are layer-normed, not rectified, hence half the variance.
        self.position = nn.Parameter(_kaiming(kernel, kernel, hidden, width) / math.sqrt(2))
        self.place_out = nn.Linear(PLACE_FEATURES, hidden)
        self.place_in = nn.Linear(PLACE_FEATURES, hidden)
        self.second = nn.Linear(hidden, config.second) if config.second else None
        self.dense = _Table((tile, tile), hidden + config.second)
        self.depthwise = _Table((tile,), hidden + config.second)
        self.classes = _Table((num_classes, tile), hidden + config.second)
        self.vector_in = nn.Linear(width, hidden)
        self.vectors = _Table((len(VECTOR_ROLES), tile), hidden)
        nn.init.kaiming_normal_(self.vector_in.weight, nonlinearity="linear")
        nn.init.zeros_(self.vector_in.bias)
        self.banks = Banks(config, width) if config.banks else None
        # Untrained weights start near a blur that keeps each channel: then a channel shows the same thing in all
        # networks, however deep, and learning does not have to begin with making them agree.
        with torch.no_grad():
            self.dense.bias.add_(_IDENTITY * torch.eye(tile))
            self.depthwise.bias.add_(_IDENTITY / 2)

    def forward(
        self,
        nodes: Tensor,
        depths: Tensor,
        requests: Sequence[Request],
        *,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """One float32 tensor for each request.

        Args:
            nodes: (V, d) embeddings.
            depths: (V,) where each node stands in its network, from 0 to 1.
            requests: What to decode.
            channels_last: Layout of the weights of convolutions.
            dtype: Of the products that make tiles; bfloat16 is faster where the processor has it.
        """
        if not requests:
            return []
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[request.cut.group].append(index)
        chosen = [[requests[index] for index in members] for members in groups.values()]
        decoded: list[Tensor] = [nodes] * len(requests)
        tasks = self._tasks(nodes, depths, chosen, channels_last, dtype)
        for members, task in zip(groups.values(), tasks, strict=True):
            tensors = self._vectors(task) if task.first.table == "vectors" else self._weights(task)
            for index, tensor in zip(members, tensors, strict=True):
                decoded[index] = tensor
        return decoded

    def _tasks(
        self,
        nodes: Tensor,
        depths: Tensor,
        chosen: Sequence[Sequence[Request]],
        channels_last: bool,
        dtype: torch.dtype,
    ) -> list[_Task]:
        """What each group of requests is decoded from; what groups share is worked out once."""
        device = nodes.device
        rows = torch.tensor(
            [request.row for requests in chosen for request in requests], device=device
        )
        sizes = [len(requests) for requests in chosen]
        gathered = nodes[rows].split(sizes)  # (M, d) each
        firsts = [requests[0].cut for requests in chosen]
        tiles = [_Tiles.of(requests, device) for requests in chosen]
        most = max(max(t.most) for t in tiles)
        features = place_features(max(most, *(max(f.tiles) for f in _cuts_of(chosen)))).to(nodes)
        outwards, inwards = self.place_out(features), self.place_in(features)
        shares: Sequence[_Shares | None] = [None] * len(chosen)
        if self.banks is not None:
            shares = self.banks.shares(nodes[rows], depths[rows], sizes, features)
        corners = self._corners([f for f in firsts if f.table != "vectors"], dtype)
        projected = self._projected(gathered, firsts)
        return [
            _Task(
                requests,
                t,
                p,
                corners.get(requests[0].cut.group),
                outwards,
                inwards,
                share,
                channels_last,
            )
            for requests, t, p, share in zip(chosen, tiles, projected, shares, strict=True)
        ]

    def _projected(self, gathered: Sequence[Tensor], firsts: Sequence[Cut]) -> list[Tensor]:
        """(M, k, h) of the nodes (M, d) of each group, one product for all groups of a kernel."""
        projected = list(gathered)
        of_kernel: dict[tuple[int, int] | None, list[int]] = defaultdict(list)
        for index, first in enumerate(firsts):
            of_kernel[None if first.table == "vectors" else first.kernel].append(index)
        kernels = [kernel for kernel in of_kernel if kernel is not None]
        size = self.config.kernel
        within = [centre(kernel, size) for kernel in kernels]
        cut_out = Corners.apply(self.position, torch.float32, *within) if kernels else ()
        positions = dict(zip(kernels, cut_out, strict=True))
        for kernel, members in of_kernel.items():
            together = torch.cat([gathered[index] for index in members])
            if kernel is None:
                found = self.vector_in(together).unsqueeze(1)
            else:
                position = centred(positions[kernel], kernel, size).flatten(0, 1)  # (k, h, d)
                found = F.linear(together, position.flatten(0, 1)).unflatten(1, position.shape[:2])
            parts = found.split([len(gathered[index]) for index in members])
            for index, part in zip(members, parts, strict=True):
                projected[index] = part
        return projected

    def _corners(
        self, cuts: Sequence[Cut], dtype: torch.dtype
    ) -> dict[tuple[object, ...], _Corner]:
        """Weights of each group's corner, cut from each table at once."""
        found: dict[tuple[object, ...], _Corner] = {}
        for name in ("dense", "depthwise", "classes"):
            wanted = [piece for piece in cuts if _TABLES.get(piece.table) == name]
            if not wanted:
                continue
            table: _Table = self.get_submodule(name)  # type: ignore[assignment]
            corners = [slices(piece) for piece in wanted]
            weights = Corners.apply(table.weight, dtype, *corners)
            biases = Corners.apply(table.bias, dtype, *corners)
            banks: Sequence[Tensor | None] = [None] * len(wanted)
            if self.banks is not None and name != "classes":
                banks = self.banks.corners(wanted, dtype, self.config.kernel)
            for piece, weight, bias, bank in zip(wanted, weights, biases, banks, strict=True):
                found[piece.group] = _Corner(weight, bias, bank)
        return found

    def _weights(self, task: _Task) -> Sequence[Tensor]:
        """Tensors of one kind that is no vector."""
        first, corner = task.first, task.corner
        assert corner is not None
        values = _values(self._deepened(task.hidden()), corner)  # (R, k, o, i)
        if first.large:
            return _large(task, corner, values)
        if corner.bank is not None and task.shares is not None:
            shares = task.shares.of(task.tiles).to(values.dtype)  # (R, K)
            values = torch.addmm(values.flatten(1), shares, corner.bank).view_as(values)
        if first.table == "grouped":
            return _grouped(values, task)
        cuts = tuple(request.cut for request in task.requests)
        tensors = Assemble.apply(values, cuts, task.channels_last)
        return [_shaped(t, c, task.channels_last) for t, c in zip(tensors, cuts, strict=True)]

    def _deepened(self, hidden: Tensor) -> Tensor:
        """(…, h) to the channels that tiles are made of."""
        if self.second is None:
            return hidden
        return torch.cat([hidden, torch.relu(self.second(hidden))], dim=-1)

    def _vectors(self, task: _Task) -> list[Tensor]:
        """Vectors of one role."""
        role = task.first.role
        table = VECTOR_ROLES.index(role)
        raw = F.linear(
            task.hidden()[:, 0], self.vectors.weight[table], self.vectors.bias[table]
        )  # (R, t)
        sizes = []
        for request in task.requests:
            length = request.cut.matrix[0]
            sizes += [length, request.cut.tiles[0] * self.config.tile - length]
        pieces = scale_vectors(raw, role).flatten().split(sizes)[::2]
        return [piece.view(r.cut.shape) for piece, r in zip(pieces, task.requests, strict=True)]


class Banks(nn.Module):
    """K tables of weights that all networks share, and how a node mixes them.

    A node at relative depth x mixes table k by a softmax over -((x - k / (K - 1)) · (K - 1) / 1.5)² plus a linear
    function of its embedding; every tile but the first scales the parts by a linear function of its place; the mixture
    has unit norm, times 3.
    """

    def __init__(self, config: DecoderConfig, width: int) -> None:
        super().__init__()
        count, tile, kernel = config.banks, config.tile, config.bank_kernel
        self.count, self.spread = count, 1.5
        self.gate = nn.Linear(width, count)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.place_out = nn.Linear(PLACE_FEATURES, count, bias=False)
        self.place_in = nn.Linear(PLACE_FEATURES, count, bias=False)
        self.dense = nn.Parameter(torch.zeros(kernel, kernel, count, tile, tile))
        # 1 × 1 kernels share nothing with the centre of larger ones.
        self.point = nn.Parameter(torch.zeros(1, 1, count, tile, tile))
        self.depthwise = nn.Parameter(torch.zeros(kernel, kernel, count, tile))

    def corners(self, cuts: Sequence[Cut], dtype: torch.dtype, kernel: int) -> list[Tensor]:
        """(K, k · o · i) of each of `cuts`."""
        found: dict[int, Tensor] = {}
        for name in ("dense", "point", "depthwise"):
            table = getattr(self, name)
            members = [i for i, piece in enumerate(cuts) if self._table(piece) == name]
            if not members:
                continue
            within = [
                (*centre(cuts[i].kernel, len(table)), slice(None), *slices(cuts[i]))
                for i in members
            ]
            pieces = Corners.apply(table, dtype, *within)
            for index, piece in zip(members, pieces, strict=True):
                positions = centred(piece, cuts[index].kernel, kernel)
                found[index] = positions.flatten(0, 1).transpose(0, 1).flatten(1)
        return [found[index] for index in range(len(cuts))]

    def shares(
        self, nodes: Tensor, depths: Tensor, sizes: Sequence[int], features: Tensor
    ) -> list[_Shares]:
        """How much of each table is in the tensors of each group.

        Args:
            nodes: (V, d) of all groups, one after another.
            depths: (V,)
            sizes: Tensors in each group.
            features: (tiles, 16) of places.
        """
        centres = torch.linspace(0, 1, self.count, dtype=nodes.dtype, device=nodes.device)
        near = -(((depths.unsqueeze(1) - centres) * ((self.count - 1) / self.spread)) ** 2)
        parts = torch.softmax(near + self.gate(nodes), dim=1).split(list(sizes))
        outwards, inwards = self.place_out(features), self.place_in(features)
        return [_Shares(part, outwards, inwards) for part in parts]

    @staticmethod
    def _table(piece: Cut) -> str:
        if piece.table == "depthwise":
            return "depthwise"
        return "point" if piece.kernel == (1, 1) else "dense"


class _Table(nn.Module):
    """A linear layer from h to a table of outputs, of which corners are computed alone."""

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_kaiming(*shape, hidden))
        self.bias = nn.Parameter(torch.zeros(shape))


_TABLES = {"dense": "dense", "grouped": "dense", "depthwise": "depthwise", "classes": "classes"}


class _Corner(NamedTuple):
    """What decodes the tiles of one group: (o, i, h) and (o, i), or (o, h) and (o,); (K, k · o · i)."""

    weight: Tensor
    bias: Tensor
    bank: Tensor | None


class _Tiles(NamedTuple):
    """Index tensors of the R tiles of M tensors.

    Attributes:
        member: (R,) tensor of each tile.
        out, into: (R,) place of each tile.
        most: Tiles along outputs and inputs that any tensor has.
        single: Whether each tensor is one tile.
    """

    member: Tensor
    out: Tensor
    into: Tensor
    most: tuple[int, int]
    single: bool

    @classmethod
    def of(cls, requests: Sequence[Request], device: torch.device) -> _Tiles:
        """The tiles that are decoded."""
        return cls._from([r.cut.places for r in requests], device)

    @classmethod
    def whole(cls, member: int, piece: Cut, device: torch.device) -> _Tiles:
        """All tiles of one tensor."""
        a, b = piece.tiles
        places: list[list[tuple[int, int]]] = [[]] * member
        return cls._from([*places, [(y, x) for y in range(a) for x in range(b)]], device)

    @classmethod
    def _from(cls, places: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> _Tiles:
        triples = [(m, *place) for m, of_member in enumerate(places) for place in of_member]
        member, out, into = torch.tensor(triples, device=device).unbind(1)
        most = 1 + max(t[1] for t in triples), 1 + max(t[2] for t in triples)
        return cls(member, out, into, most, most == (1, 1) and len(triples) == len(places))


class _Shares(NamedTuple):
    """How much of each of K banks is in the tensors of a group: (M, K), and what places make of it: (tiles, K)."""

    parts: Tensor
    outwards: Tensor
    inwards: Tensor

    def of(self, tiles: _Tiles) -> Tensor:
        """(R, K)"""
        if tiles.single:
            return _BANK_SIZE * F.normalize(self.parts, dim=1)  # the first place changes nothing
        scaled = self.parts[tiles.member] * (
            1 + self.outwards[tiles.out] + self.inwards[tiles.into]
        )
        return _BANK_SIZE * F.normalize(scaled, dim=1)


class _Task(NamedTuple):
    """Tensors of one kind, with what decodes them."""

    requests: Sequence[Request]
    tiles: _Tiles
    projected: Tensor
    """(M, k, h)"""
    corner: _Corner | None
    outwards: Tensor
    inwards: Tensor
    """(tiles, h) embeddings of places."""
    shares: _Shares | None
    channels_last: bool

    @property
    def first(self) -> Cut:
        """What all of them have in common is in each."""
        return self.requests[0].cut

    def hidden(self) -> Tensor:
        """(R, k, h)"""
        tiles = self.tiles
        if tiles.single:
            places = self.outwards[0] + (self.inwards[0] if self.first.table != "vectors" else 0)
            return torch.relu(self.projected + places)
        places = self.outwards[tiles.out]
        if self.first.table != "vectors":
            places = places + self.inwards[tiles.into]
        return torch.relu(self.projected[tiles.member] + places.unsqueeze(1))


def _cuts_of(chosen: Sequence[Sequence[Request]]) -> list[Cut]:
    return [request.cut for requests in chosen for request in requests]


def _values(hidden: Tensor, corner: _Corner) -> Tensor:
    """(R, k, h) to (R, k, o, i)"""
    weight, bias = corner.weight.flatten(0, -2), corner.bias.flatten()
    raw = F.linear(hidden.to(weight.dtype), weight, bias)
    return raw.unflatten(-1, corner.bias.shape if corner.bias.ndim == 2 else (-1, 1))


def _large(task: _Task, corner: _Corner, values: Tensor) -> list[Tensor]:
    """Weights of more tiles than are decoded, mixed from these and the banks."""
    tensors = []
    counts = [math.prod(request.cut.decoded) for request in task.requests]
    for member, table in enumerate(values.split(counts)):  # (a · b, k, o, i)
        piece = task.requests[member].cut
        parts = mixture(piece.tiles, piece.decoded).to(table)  # (A · B, a · b)
        if corner.bank is not None and task.shares is not None:
            shares = task.shares.of(_Tiles.whole(member, piece, table.device)).to(table)
            parts = torch.cat([parts, shares], dim=1)
            table = torch.cat([table, corner.bank.view(-1, *table.shape[1:])])
        mixed = _mixed(parts, table, piece, task.channels_last)
        tensors.append(_shaped(mixed, piece, task.channels_last))
    return tensors


def _grouped(values: Tensor, task: _Task) -> list[Tensor]:
    """The blocks of dense weights that groups keep, from (R, k, t, t)."""
    tensors, start = [], 0
    for request in task.requests:
        piece = request.cut
        places, row, out, into = grouped_places(piece.matrix, piece.groups, piece.corner[0])
        rows = values[start : start + len(places)]
        index = tuple(t.to(values.device) for t in (row, out, into))
        weight = rows.permute(0, 2, 3, 1)[index].float() * piece.factor  # (O, I, k)
        tensors.append(spatial(weight, piece.shape))
        start += len(places)
    return tensors


def _mixed(parts: Tensor, table: Tensor, piece: Cut, channels_last: bool) -> Tensor:
    """(A · B, p) parts of (p, k, o, i) tables to (O, k, I) as channels_last, (O, I, k) otherwise."""
    parts = (parts * piece.factor).view(*piece.tiles, -1)  # (A, B, p)
    whole = _mixed_channels_last(parts, table) if channels_last else _mixed_in_rows(parts, table)
    outputs, inputs = piece.matrix
    whole = whole[:outputs, :, :inputs] if channels_last else whole[:outputs, :inputs]
    return whole.float().contiguous()


def _mixed_channels_last(parts: Tensor, table: Tensor) -> Tensor:
    """(A, B, p) parts of (p, k, o, i) tables to (A · o, k, B · i)."""
    tiles = (parts.flatten(0, 1) @ table.flatten(1)).view(*parts.shape[:2], *table.shape[1:])
    return tiles.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)


def _mixed_in_rows(parts: Tensor, table: Tensor) -> Tensor:
    """The same to (A · o, B · i, k): one product for each output channel of a tile, written where it belongs."""
    _, positions, out, into = table.shape
    rows, columns = parts.shape[:2]
    by_output = table.permute(2, 0, 3, 1).flatten(2)  # (o, p, i · k)
    if torch.is_grad_enabled():
        whole = parts.unsqueeze(1) @ by_output  # (A, o, B, i · k)
    else:
        whole = table.new_empty(rows, out, columns, into * positions)
        for index in range(rows):
            torch.matmul(parts[index], by_output, out=whole[index])
    return whole.view(rows * out, columns * into, positions)


def _shaped(tensor: Tensor, piece: Cut, channels_last: bool) -> Tensor:
    """(O, k, I) or (O, I, k) to the tensor's shape."""
    return spatial(tensor.transpose(1, 2) if channels_last else tensor, piece.shape)


def _kaiming(*shape: int) -> Tensor:
    """Normal values that keep the variance of a rectified input of size shape[-1]."""
    return torch.randn(shape) * math.sqrt(2 / shape[-1])
