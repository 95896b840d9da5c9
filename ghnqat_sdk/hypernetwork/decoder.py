"""Node embeddings to parameter tensors, grouped by shape: one matrix product for all tensors of a shape.

Large models are bound by memory, so a weight is scaled while it is small and written once, in its final layout.

A weight is decoded position by position (GHN-2's convolutional decoder, Knyazev et al. 2021) in tiles of 64 × 64
channels. Every tile has a place embedding that enters before the nonlinearities, so that a tensor larger than one tile
is not a repetition of it: repeating a tile leaves 64 distinct filters and rank 64. A weight of more than 16 tiles is
made of its first 4 × 4: each tile is the one that a repetition would put there, mixed with a little of all of them in
proportions of its own. That costs 16 multiply-adds for each number instead of e, and keeps every filter distinct.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import Node, Parameter
from ghnqat_sdk.parameters import normalise

_PLACE_FEATURES = 16
_IDENTITY = 3.0
_BASIS = 4
"""Tiles along outputs and along inputs of a large weight that are decoded."""
_CHUNK = 4_000_000
"""Numbers of a large weight that are made at once, so that no temporary is as large as the weight."""
_MIXED = 0.3
"""Size of what is mixed into a tile beyond them, relative to the tile that is repeated there."""
_VECTOR_ROLES = ("bias", "scale", "shift", "slope")


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


class Request(NamedTuple):
    """Decode one parameter of M nodes that are alike."""

    nodes: Tensor
    """(M, d) embeddings."""
    node: Node
    parameter: Parameter


class Decoder(nn.Module):
    """Node embeddings to parameters.

    Letters: M nodes, d embedding, h hidden, e hidden and second together, t tile, (A, B) tiles along output and input
    channels, k = Kh · Kw positions, (O, I) output and input channels.
    """

    def __init__(self, config: DecoderConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        hidden, tile = config.hidden, config.tile
        # Node embeddings are layer-normed, not rectified, hence half the variance.
        self.position = nn.Parameter(_kaiming(config.kernel**2, hidden, width) / math.sqrt(2))
        self.place_out = nn.Linear(_PLACE_FEATURES, hidden)
        self.place_in = nn.Linear(_PLACE_FEATURES, hidden)
        self.second = nn.Linear(hidden, config.second) if config.second else None
        if self.second is not None:
            # Half the usual size: many new features at full size unsettle what a trained decoder already does.
            nn.init.normal_(self.second.weight, std=0.5 * math.sqrt(2 / hidden))
            nn.init.zeros_(self.second.bias)
        self.dense = _Table((tile, tile), hidden + config.second)
        self.depthwise = _Table((tile,), hidden + config.second)
        self.classes = _Table((num_classes, tile), hidden + config.second)
        self.vector_in = nn.Linear(width, hidden)
        self.vectors = _Table((len(_VECTOR_ROLES), tile), hidden)
        nn.init.kaiming_normal_(self.vector_in.weight, nonlinearity="linear")
        nn.init.zeros_(self.vector_in.bias)
        # Untrained weights start near a blur that keeps each channel: then a channel shows the same thing in all
        # networks, however deep, and learning does not have to begin with making them agree.
        with torch.no_grad():
            self.dense.bias.add_(_IDENTITY * torch.eye(tile))
            self.depthwise.bias.add_(_IDENTITY / 2)

    def forward(self, requests: Sequence[Request], channels_last: bool = True) -> list[Sequence[Tensor]]:
        """M tensors of parameter.shape for each request.

        Args:
            requests: What to decode.
            channels_last: Layout of the weights of convolutions.
        """
        plans = [self._plan(request.node, request.parameter) for request in requests]
        corners: dict[tuple[str, _Corner], _Pair] = {}
        for name in dict.fromkeys(plan.table for plan in plans):
            wanted = list(dict.fromkeys(plan.corner for plan in plans if plan.table == name))
            found = self.get_submodule(name).corners(wanted)  # type: ignore[operator]
            corners |= {(name, corner): pair for corner, pair in zip(wanted, found, strict=True)}
        kernels = dict.fromkeys(_kernel(request.parameter.shape) for request in requests)
        positions = {kernel: self.position[_centre_positions(kernel, self.config.kernel)] for kernel in kernels}
        place_out = functools.cache(lambda tiles: self.place_out(_places(tiles, self.position)))
        place_in = functools.cache(lambda tiles: self.place_in(_places(tiles, self.position)))
        decoded = []
        for request, plan in zip(requests, plans, strict=True):
            position, corner = positions[_kernel(request.parameter.shape)], corners[plan.table, plan.corner]
            task = _Task(request, position, corner, place_out, place_in, self._deepened, channels_last)
            decoded.append(getattr(self, f"_{plan.decoder}")(task))
        return decoded

    def _plan(self, node: Node, parameter: Parameter) -> _Plan:
        shape, tile = parameter.shape, self.config.tile
        if parameter.role in _VECTOR_ROLES:
            role = _VECTOR_ROLES.index(parameter.role)
            return _Plan("vectors", "vectors", ((role, role + 1), (0, min(math.prod(shape), tile))))
        if node.op == "classifier" and shape[0] == self.num_classes and parameter.role == "weight":
            return _Plan("classes", "classes", ((0, self.num_classes), (0, min(math.prod(shape[1:]), tile))))
        if node.op == "depthwise_conv":
            return _Plan("depthwise", "depthwise", ((0, min(shape[0], tile)),))
        rows, columns = _matrix(shape)
        if node.op == "grouped_conv":
            return _Plan("grouped", "dense", ((0, min(rows, tile)), (0, min(columns * node.groups, tile))))
        return _Plan("dense", "dense", ((0, min(rows, tile)), (0, min(columns, tile))))

    def _deepened(self, before: Tensor) -> Tensor:
        """(…, h) before its nonlinearity to (…, e): the hidden channels and the second layer on top of them."""
        hidden = torch.relu(before)
        if self.second is None:
            return hidden
        return torch.cat([hidden, torch.relu(self.second(hidden))], dim=-1)

    def _tiles(self, count: int) -> int:
        """Tiles that `count` channels take."""
        return math.ceil(count / self.config.tile)

    def _dense(self, task: _Task) -> Sequence[Tensor]:
        """The layout is that of the last two dimensions before a weight's own: (k, I) or (I, k)."""
        shape = task.request.parameter.shape
        rows, columns = _matrix(shape)
        tiles = self._tiles(rows), self._tiles(columns)
        decoded = _decoded(tiles)
        raw = task.values(task.hidden(*decoded))  # (M, A, B, k, o, i)
        if tiles != decoded:
            weights = [_mixed(one, tiles, task.channels_last) for one in raw]
        elif task.channels_last:
            weights = [one.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1) for one in raw]
        else:
            weights = [one.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) for one in raw]
        if task.channels_last:
            return [_spatial(w[:rows, :, :columns].transpose(1, 2), shape) for w in weights]
        return [_spatial(w[:rows, :columns].contiguous(), shape) for w in weights]

    def _grouped(self, task: _Task) -> Sequence[Tensor]:
        """The blocks of a dense weight that the groups keep, so that a channel means the same in both.

        Where a strip of outputs reads from several tiles of inputs, it has the place of the first.
        """
        shape, groups, tile = task.request.parameter.shape, task.request.node.groups, self.config.tile
        rows, depth = _matrix(shape)
        size = rows // groups
        outputs = torch.arange(rows, device=task.position.device).unsqueeze(1)
        inputs = outputs // size * depth + torch.arange(depth, device=outputs.device)  # (O, I / groups)
        place_out, place_in = task.place_out(self._tiles(rows)), task.place_in(self._tiles(groups * depth))
        hidden = task.projected()
        weight, bias = task.corner
        strips = []
        for out in range(0, rows, tile):
            blocks = []
            for start in range(0, depth, tile):
                near = task.deepened(hidden + place_out[out // tile] + place_in[(out // size * depth + start) // tile])
                at = outputs[out : out + tile] % tile, inputs[out : out + tile, start : start + tile] % tile
                block = task._replace(corner=(weight[at], bias[at])).values(near)  # (M, k, o, i)
                blocks.append(block.transpose(1, 2))
            strips.append(torch.cat(blocks, dim=3))
        weights = torch.cat(strips, dim=1).transpose(2, 3)  # (M, O, I, k)
        return [_spatial(w if task.channels_last else w.contiguous(), shape) for w in weights]

    def _depthwise(self, task: _Task) -> Sequence[Tensor]:
        shape = task.request.parameter.shape  # one input channel: both layouts are the same
        raw = task.values(task.hidden(self._tiles(shape[0]), 1)[:, :, 0])  # (M, A, k, o)
        weights = raw.permute(0, 1, 3, 2).flatten(1, 2)[:, : shape[0], None]  # (M, O, 1, k)
        return [_spatial(w, shape) for w in weights]

    def _classes(self, task: _Task) -> Sequence[Tensor]:
        shape = task.request.parameter.shape
        columns = math.prod(shape[1:])
        raw = task.values(task.hidden(1, self._tiles(columns))[:, 0, :, 0])  # (M, B, classes, i)
        return raw.transpose(1, 2).flatten(2)[..., :columns].reshape(-1, *shape).unbind()

    def _vectors(self, task: _Task) -> Sequence[Tensor]:
        shape = task.request.parameter.shape
        length = math.prod(shape)
        hidden = self.vector_in(task.request.nodes).unsqueeze(1) + task.place_out(self._tiles(length))
        return task.values(torch.relu(hidden)).flatten(1)[:, :length].reshape(-1, *shape).unbind()


_Corner = tuple[tuple[int, int], ...]
"""(start, stop) along each dimension of a table."""
_Pair = tuple[Tensor, Tensor]
"""Weight (*corner, h) and bias (*corner) of a corner."""


class _Plan(NamedTuple):
    """How one parameter is decoded."""

    decoder: str
    """Method of `Decoder`, without its underscore."""
    table: str
    """What it reads."""
    corner: _Corner
    """The part of it that it needs."""


class _Task(NamedTuple):
    """A request with what its decoding reads."""

    request: Request
    position: Tensor
    """(k, h, d) of the weight's kernel."""
    corner: _Pair
    place_out: Callable[[int], Tensor]
    """(tiles, h) embeddings of the first so many tiles along the outputs."""
    place_in: Callable[[int], Tensor]
    """The same along the inputs."""
    deepened: Callable[[Tensor], Tensor]
    """(…, h) before its nonlinearity to (…, e)."""
    channels_last: bool

    def projected(self) -> Tensor:
        """(M, k, h)"""
        return torch.einsum("md,khd->mkh", self.request.nodes, self.position)

    def hidden(self, tiles_out: int, tiles_in: int) -> Tensor:
        """(M, A, B, k, e)"""
        places = self.place_out(tiles_out)[:, None, None] + self.place_in(tiles_in)[:, None]
        return self.deepened(self.projected()[:, None, None] + places)

    def values(self, hidden: Tensor) -> Tensor:
        """(…, e) to (…, *corner), or (…, h) for a vector, scaled for the parameter's role."""
        weight, bias = self.corner
        raw = F.linear(hidden, weight.flatten(0, -2), bias.flatten()).unflatten(-1, bias.shape)
        return normalise(raw, self.request.node, self.request.parameter)


class _Table(nn.Module):
    """A linear layer from h to a table of outputs, of which corners are computed alone."""

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_kaiming(*shape, hidden))
        self.bias = nn.Parameter(torch.zeros(shape))

    def corners(self, corners: Sequence[_Corner]) -> list[_Pair]:
        """Weight and bias of each corner."""
        weights, biases = _Corners.apply(self.weight, *corners), _Corners.apply(self.bias, *corners)
        return list(zip(weights, biases, strict=True))


class _Corners(torch.autograd.Function):
    """Corners of one tensor; their gradients are added into one buffer instead of a table of zeros for each."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, *corners: _Corner) -> tuple[Tensor, ...]:
        ctx.corners, ctx.shape = corners, table.shape
        return tuple(table[_slices(corner)].contiguous().clone() for corner in corners)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        for corner, gradient in zip(ctx.corners, gradients, strict=True):
            total[_slices(corner)] += gradient
        return (total, *(None for _ in ctx.corners))


def _slices(corner: _Corner) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in corner)


def _mixed(decoded: Tensor, tiles: tuple[int, int], channels_last: bool) -> Tensor:
    """(a, b, k, o, i) to (A · o, k, B · i), or to (A · o, B · i, k)."""
    _, _, positions, outputs, inputs = decoded.shape
    mixture, basis = _mixture(tiles, decoded), decoded.flatten(2).flatten(0, 1)
    shape = (outputs, positions, tiles[1], inputs) if channels_last else (outputs, tiles[1], inputs, positions)
    whole = decoded.new_empty(tiles[0], *shape)
    at_once = max(1, _CHUNK // math.prod(shape))
    for start in range(0, tiles[0], at_once):
        rows = mixture[start : start + at_once]
        chunk = (rows.flatten(0, 1) @ basis).view(*rows.shape[:2], positions, outputs, inputs)
        order = (0, 3, 2, 1, 4) if channels_last else (0, 3, 1, 4, 2)
        whole[start : start + at_once] = chunk.permute(order)
    whole = whole.flatten(0, 1)
    return whole.flatten(2) if channels_last else whole.flatten(1, 2)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(O, I) of a weight; a vector is a column."""
    return shape[0], shape[1] if len(shape) > 1 else 1


def _kaiming(*shape: int) -> Tensor:
    """Normal values that keep the variance of a rectified input of size shape[-1]."""
    return torch.randn(shape) * math.sqrt(2 / shape[-1])


def _kernel(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a weight's kernel: (1, 1) for a matrix, (1, K) in one dimension, the last two in three."""
    spatial = tuple(shape[2:])[-2:]
    return ((1, 1), (1, *spatial), spatial)[len(spatial)]  # type: ignore[return-value]


def _spatial(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """(O, I, k) to `shape` without a copy; a kernel in three dimensions is repeated along its depth."""
    if len(shape) == 5:
        return (weight.unflatten(2, (1, *shape[3:])) / math.sqrt(shape[2])).expand(*shape)
    return weight.unflatten(2, tuple(shape[2:])) if len(shape) > 2 else weight.reshape(*shape)


def _centre_positions(kernel: tuple[int, int], size: int) -> Tensor:
    """(k,) indices into a size × size grid of positions."""

    def along(length: int) -> Tensor:
        if length <= size:
            return torch.arange(length) + (size - length) // 2
        return (torch.arange(length) * size + size // 2) // length

    return (along(kernel[0])[:, None] * size + along(kernel[1])).flatten()


def _decoded(tiles: tuple[int, int]) -> tuple[int, int]:
    """How many of a weight's tiles are decoded; the rest are mixtures of these."""
    return tiles if math.prod(tiles) <= _BASIS**2 else (min(tiles[0], _BASIS), min(tiles[1], _BASIS))


def _mixture(tiles: tuple[int, int], like: Tensor) -> Tensor:
    """(A, B, a · b): how much of each decoded tile is in each tile of a weight; the last dimension has unit norm."""
    decoded = _decoded(tiles)
    across = torch.arange(math.prod(tiles), device=like.device)
    repeated = across // tiles[1] % decoded[0] * decoded[1] + across % tiles[1] % decoded[1]
    count = decoded[0] * decoded[1]
    # Quadratic phases: as good as random, and the same everywhere.
    places = torch.arange(1, len(across) * count + 1, dtype=torch.float64, device=like.device).view(-1, count)
    little = F.normalize((places**2 * ((1 + math.sqrt(5)) / 2)).frac() - 0.5, dim=1) * _MIXED
    return F.normalize(F.one_hot(repeated, count) + little, dim=1).to(like.dtype).unflatten(0, tiles)


def _places(tiles: int, like: Tensor) -> Tensor:
    """(tiles, 16): sines and cosines of a tile's index, all different below 512 tiles."""
    periods = 2.0 ** torch.arange(1, _PLACE_FEATURES // 2 + 1, device=like.device)
    angles = torch.arange(tiles, device=like.device).unsqueeze(1) * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos() - 1], dim=1).to(like.dtype)
