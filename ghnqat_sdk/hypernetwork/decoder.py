"""Node embeddings to parameter tensors, grouped by shape: one matrix product for all tensors of a shape.

A weight is decoded position by position (GHN-2's convolutional decoder, Knyazev et al. 2021) in tiles of 64 × 64
channels. Every tile has a place embedding that enters before the nonlinearities, so that a tensor larger than one tile
is not a repetition of it: repeating a tile leaves 64 distinct filters and rank 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import Node, Parameter

_PLACE_FEATURES = 16
_IDENTITY = 3.0
_VECTOR_ROLES = ("bias", "scale", "shift", "slope")


class DecoderConfig(BaseModel):
    """Sizes of the decoder."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden: int = Field(128, ge=8, le=4096)
    """Channels between a node's embedding and a tile."""
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
    """Node embeddings to raw tensors of about unit variance.

    Letters: M nodes, d embedding, h hidden, t tile, (A, B) tiles along output and input channels, k = Kh · Kw
    positions, (O, I) output and input channels.
    """

    def __init__(self, config: DecoderConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        hidden, tile = config.hidden, config.tile
        # Node embeddings are layer-normed, not rectified, hence half the variance.
        self.position = nn.Parameter(_kaiming(config.kernel**2, hidden, width) / math.sqrt(2))
        self.place_out = nn.Linear(_PLACE_FEATURES, hidden)
        self.place_in = nn.Linear(_PLACE_FEATURES, hidden)
        self.dense = _Table((tile, tile), hidden)
        self.depthwise = _Table((tile,), hidden)
        self.classes = _Table((num_classes, tile), hidden)
        self.vector_in = nn.Linear(width, hidden)
        self.vectors = _Table((len(_VECTOR_ROLES), tile), hidden)
        nn.init.kaiming_normal_(self.vector_in.weight, nonlinearity="linear")
        nn.init.zeros_(self.vector_in.bias)
        # Untrained weights start near a blur that keeps each channel: then a channel shows the same thing in all
        # networks, however deep, and learning does not have to begin with making them agree.
        with torch.no_grad():
            self.dense.bias.add_(_IDENTITY * torch.eye(tile))
            self.depthwise.bias.add_(_IDENTITY / 2)

    def forward(self, requests: Sequence[Request]) -> list[Tensor]:
        """(M, *parameter.shape) for each request."""
        plans = [self._plan(request.node, request.parameter) for request in requests]
        corners: dict[tuple[str, _Corner], _Pair] = {}
        for name in dict.fromkeys(plan.table for plan in plans):
            wanted = list(dict.fromkeys(plan.corner for plan in plans if plan.table == name))
            found = self.get_submodule(name).corners(wanted)  # type: ignore[operator]
            corners |= {(name, corner): pair for corner, pair in zip(wanted, found, strict=True)}
        kernels = dict.fromkeys(_kernel(request.parameter.shape) for request in requests)
        positions = {kernel: self.position[_centre_positions(kernel, self.config.kernel)] for kernel in kernels}
        decoded = []
        for request, plan in zip(requests, plans, strict=True):
            decode = getattr(self, f"_{plan.decoder}")
            position = positions[_kernel(request.parameter.shape)]
            decoded.append(decode(request, position, corners[plan.table, plan.corner]))
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

    def _hidden(self, nodes: Tensor, position: Tensor, tiles_out: int, tiles_in: int) -> Tensor:
        """(M, d) and (k, h, d) to (M, A, B, k, h)."""
        hidden = torch.einsum("md,khd->mkh", nodes, position)[:, None, None]
        place_out = self.place_out(_places(tiles_out, nodes))[None, :, None, None]
        place_in = self.place_in(_places(tiles_in, nodes))[None, None, :, None]
        return torch.relu(hidden + place_out + place_in)

    def _dense(self, request: Request, position: Tensor, corner: _Pair) -> Tensor:
        """(M, d) to (M, O, I, …) in channels_last order, which convolutions read without a copy."""
        shape, tile = request.parameter.shape, self.config.tile
        rows, columns = _matrix(shape)
        hidden = self._hidden(request.nodes, position, math.ceil(rows / tile), math.ceil(columns / tile))
        raw = _linear(hidden, corner)  # (M, A, B, k, o, i)
        raw = raw.permute(0, 1, 4, 3, 2, 5).flatten(4, 5).flatten(1, 2)[:, :rows, :, :columns]  # (M, O, k, I)
        return raw[:, :, 0].reshape(-1, *shape) if len(shape) <= 2 else _channels_last(raw, shape)

    def _grouped(self, request: Request, position: Tensor, corner: _Pair) -> Tensor:
        """The blocks of a dense weight that the groups keep, so that a channel means the same in both.

        Where a strip of outputs reads from several tiles of inputs, it has the place of the first.
        """
        shape, groups, nodes, tile = request.parameter.shape, request.node.groups, request.nodes, self.config.tile
        rows, depth = _matrix(shape)
        size = rows // groups
        outputs = torch.arange(rows, device=nodes.device).unsqueeze(1)
        inputs = outputs // size * depth + torch.arange(depth, device=nodes.device)  # (O, I / groups)
        hidden = torch.einsum("md,khd->mkh", nodes, position)
        place_out = self.place_out(_places(math.ceil(rows / tile), nodes))
        place_in = self.place_in(_places(math.ceil(groups * depth / tile), nodes))
        weight, bias = corner
        strips = []
        for out in range(0, rows, tile):
            blocks = []
            for start in range(0, depth, tile):
                near = torch.relu(hidden + place_out[out // tile] + place_in[(out // size * depth + start) // tile])
                at = outputs[out : out + tile] % tile, inputs[out : out + tile, start : start + tile] % tile
                blocks.append(_linear(near, (weight[at], bias[at])).transpose(1, 2))  # (M, o, k, i)
            strips.append(torch.cat(blocks, dim=3))
        return _channels_last(torch.cat(strips, dim=1), shape)

    def _depthwise(self, request: Request, position: Tensor, corner: _Pair) -> Tensor:
        shape = request.parameter.shape
        hidden = self._hidden(request.nodes, position, math.ceil(shape[0] / self.config.tile), 1)[:, :, 0]
        raw = _linear(hidden, corner)  # (M, A, k, o)
        raw = raw.permute(0, 1, 3, 2).flatten(1, 2)[:, : shape[0]].unflatten(2, (1, *_kernel(shape)))
        return _spatial(raw, shape)

    def _classes(self, request: Request, position: Tensor, corner: _Pair) -> Tensor:
        shape = request.parameter.shape
        columns = math.prod(shape[1:])
        hidden = self._hidden(request.nodes, position, 1, math.ceil(columns / self.config.tile))[:, 0, :, 0]
        raw = _linear(hidden, corner)  # (M, B, classes, i)
        return raw.transpose(1, 2).flatten(2)[..., :columns].reshape(-1, *shape)

    def _vectors(self, request: Request, _: Tensor, corner: _Pair) -> Tensor:
        shape, nodes = request.parameter.shape, request.nodes
        length = math.prod(shape)
        places = self.place_out(_places(math.ceil(length / self.config.tile), nodes))
        hidden = torch.relu(self.vector_in(nodes).unsqueeze(1) + places)
        return _linear(hidden, corner).flatten(1)[:, :length].reshape(-1, *shape)


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


def _linear(hidden: Tensor, corner: _Pair) -> Tensor:
    """(…, h) to (…, *corner)."""
    weight, bias = corner
    return F.linear(hidden, weight.flatten(0, -2), bias.flatten()).unflatten(-1, bias.shape)


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


def _channels_last(raw: Tensor, shape: Sequence[int]) -> Tensor:
    """(M, O, k, I) to (M, *shape) without a copy."""
    return _spatial(raw.unflatten(2, _kernel(shape)).permute(0, 1, 4, 2, 3), shape)


def _spatial(raw: Tensor, shape: Sequence[int]) -> Tensor:
    """(M, O, I, Kh, Kw) to (M, *shape): a 1-D kernel drops Kh, a 3-D one repeats along its depth."""
    if len(shape) == 5:
        return (raw.unsqueeze(3) / math.sqrt(shape[2])).expand(-1, *shape)
    return raw.squeeze(3) if len(shape) == 3 else raw


def _centre_positions(kernel: tuple[int, int], size: int) -> Tensor:
    """(k,) indices into a size × size grid of positions."""

    def along(length: int) -> Tensor:
        if length <= size:
            return torch.arange(length) + (size - length) // 2
        return (torch.arange(length) * size + size // 2) // length

    return (along(kernel[0])[:, None] * size + along(kernel[1])).flatten()


def _places(tiles: int, like: Tensor) -> Tensor:
    """(tiles, 16): sines and cosines of a tile's index, all different below 512 tiles."""
    periods = 2.0 ** torch.arange(1, _PLACE_FEATURES // 2 + 1, device=like.device)
    angles = torch.arange(tiles, device=like.device).unsqueeze(1) * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos() - 1], dim=1).to(like.dtype)
