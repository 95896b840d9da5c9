"""Node embeddings to parameter tensors, grouped by shape: one matrix product for all tensors of a shape.

A weight is decoded position by position (GHN-2's convolutional decoder, Knyazev et al. 2021) in tiles of 64 × 64
channels. Every tile has a place embedding that enters before the nonlinearities, so that a tensor larger than one tile
is not a repetition of it: repeating a tile leaves 64 distinct filters and rank 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import Node, Parameter

_PLACE_FEATURES = 16
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


class Decoder(nn.Module):
    """Decodes tensors of one kind and shape for M nodes: (M, d) to (M, *shape), about unit variance.

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
        self.mix = nn.Linear(hidden, hidden)
        self.dense = _Table((tile, tile), hidden)
        self.depthwise = _Table((tile,), hidden)
        self.classes = _Table((num_classes, tile), hidden)
        self.vector_in = nn.Linear(width, hidden)
        self.vectors = _Table((len(_VECTOR_ROLES), tile), hidden)
        for layer in (self.mix, self.vector_in):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, nodes: Tensor, node: Node, parameter: Parameter) -> Tensor:
        """(M, d) to (M, *parameter.shape) for nodes that are like `node`."""
        shape = parameter.shape
        if node.op == "classifier" and shape[0] == self.num_classes and parameter.role == "weight":
            return self._classes(nodes, math.prod(shape[1:])).reshape(-1, *shape)
        if parameter.role in _VECTOR_ROLES:
            flat = self._vector(nodes, math.prod(shape), _VECTOR_ROLES.index(parameter.role))
            return flat.reshape(-1, *shape)
        if node.op == "depthwise_conv":
            return self._depthwise(nodes, shape)
        return self._dense(nodes, shape)

    def _hidden(self, nodes: Tensor, kernel: tuple[int, int], tiles_out: int, tiles_in: int) -> Tensor:
        """(M, d) to (M, A, B, k, h)."""
        at = _centre_positions(kernel, self.config.kernel).to(nodes.device)
        hidden = torch.einsum("md,khd->mkh", nodes, self.position[at])[:, None, None]
        place_out = self.place_out(_places(tiles_out, nodes))[None, :, None, None]
        place_in = self.place_in(_places(tiles_in, nodes))[None, None, :, None]
        return torch.relu(self.mix(torch.relu(hidden + place_out + place_in)))

    def _dense(self, nodes: Tensor, shape: Sequence[int]) -> Tensor:
        """(M, d) to (M, O, I, …) in channels_last order, which convolutions read without a copy."""
        rows, columns = shape[0], shape[1] if len(shape) > 1 else 1
        tile = self.config.tile
        kernel = _kernel(shape)
        tiles_out, tiles_in = math.ceil(rows / tile), math.ceil(columns / tile)
        hidden = self._hidden(nodes, kernel, tiles_out, tiles_in)
        raw = self.dense(hidden, min(rows, tile), min(columns, tile))  # (M, A, B, k, o, i)
        raw = raw.permute(0, 1, 4, 3, 2, 5).flatten(4, 5).flatten(1, 2)[:, :rows, :, :columns]  # (M, O, k, I)
        if len(shape) <= 2:
            return raw[:, :, 0].reshape(-1, *shape)
        raw = raw.unflatten(2, kernel).permute(0, 1, 4, 2, 3)
        return _spatial(raw, shape)

    def _depthwise(self, nodes: Tensor, shape: Sequence[int]) -> Tensor:
        tile, kernel = self.config.tile, _kernel(shape)
        hidden = self._hidden(nodes, kernel, math.ceil(shape[0] / tile), 1)[:, :, 0]
        raw = self.depthwise(hidden, min(shape[0], tile))  # (M, A, k, o)
        raw = raw.permute(0, 1, 3, 2).flatten(1, 2)[:, : shape[0]].unflatten(2, (1, *kernel))
        return _spatial(raw, shape)

    def _classes(self, nodes: Tensor, columns: int) -> Tensor:
        tile = self.config.tile
        hidden = self._hidden(nodes, (1, 1), 1, math.ceil(columns / tile))[:, 0, :, 0]
        raw = self.classes(hidden, self.num_classes, min(columns, tile))  # (M, B, classes, i)
        return raw.transpose(1, 2).flatten(2)[..., :columns]

    def _vector(self, nodes: Tensor, length: int, role: int) -> Tensor:
        tile = self.config.tile
        places = self.place_out(_places(math.ceil(length / tile), nodes))
        hidden = torch.relu(self.vector_in(nodes).unsqueeze(1) + places)
        return self.vectors(hidden, slice(role, role + 1), min(length, tile)).flatten(1)[:, :length]


class _Table(nn.Module):
    """A linear layer from h to a table of outputs, of which a corner can be computed alone."""

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_kaiming(*shape, hidden))
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, hidden: Tensor, *corner: int | slice) -> Tensor:
        """(…, h) to (…, *corner); an integer n in the corner stands for the first n entries."""
        at = tuple(c if isinstance(c, slice) else slice(c) for c in corner)
        weight, bias = self.weight[at], self.bias[at]
        out = torch.nn.functional.linear(hidden, weight.flatten(0, -2), bias.flatten())
        return out.unflatten(-1, bias.shape)


def _kaiming(*shape: int) -> Tensor:
    """Normal values that keep the variance of a rectified input of size shape[-1]."""
    return torch.randn(shape) * math.sqrt(2 / shape[-1])


def _kernel(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a weight's kernel: (1, 1) for a matrix, (1, K) in one dimension, the last two in three."""
    spatial = tuple(shape[2:])[-2:]
    return ((1, 1), (1, *spatial), spatial)[len(spatial)]  # type: ignore[return-value]


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
