"""Where channels stand in tiles, which tiles make up a weight, and what tells their places.

Letters: R tiles, (A, B) tiles along outputs and inputs, (a, b) those that are decoded, (O, I)
channels of a weight, C of what a layer reads.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.graph.channels import Runs, numbers_of

_CORNERS = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes that a tile's channels are rounded up to, so that similar tensors are decoded together."""

_MIXED = 0.3
"""Size of what is mixed into a tile beyond the basis, relative to the tile repeated there."""

PLACE_FEATURES = 16
"""Numbers that tell a tile's place along one side."""


def corner_size(count: int, tile: int) -> int:
    """Channels of a tile that are decoded for a tensor of `count` channels."""
    return min(tile, next((size for size in _CORNERS if size >= count), tile))


def tiles_of(count: int, tile: int) -> int:
    """Tiles that `count` channels take."""
    return math.ceil(count / tile)


class ChannelTiles(NamedTuple):
    """Channels of several parts in tiles, each part from a tile of its own on.

    Attributes:
        corner: Channels of a tile that are decoded.
        tiles: Of all parts.
        tile: (C,) in which of them each channel stands.
        within: (C,) where in it.
    """

    corner: int
    tiles: int
    tile: Tensor
    within: Tensor

    def places(self, length: int) -> Tensor:
        """(C,) where each channel stands among all tiles, of `length` channels each."""
        return self.tile * length + self.within


@functools.lru_cache(maxsize=64)  # the parameters of one node read the same
def channel_tiles(reads: Runs, tile: int) -> ChannelTiles:
    """Where the channels of several parts stand in tiles of `tile` channels."""
    lengths: dict[int, int] = {}
    for part, first, count in reads:
        lengths[part] = max(lengths.get(part, 0), first + count)
    starts: dict[int, int] = {}
    tiles = 0
    for part in sorted(lengths):
        starts[part] = tiles
        tiles += tiles_of(lengths[part], tile)
    channels = numbers_of(reads)
    parts = torch.tensor([starts[run.part] for run in reads])
    start = parts.repeat_interleave(torch.tensor([run.length for run in reads]))
    corner = corner_size(max(lengths.values()), tile)
    return ChannelTiles(corner, tiles, start + channels // tile, channels % tile)


@functools.lru_cache(maxsize=1024)
def grouped_places(
    matrix: tuple[int, int], groups: int, tile: int, reads: Runs = ()
) -> tuple[tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]:
    """The tiles of the dense weight that a grouped one is cut from, and where it lies in them.

    A channel then means the same in both.

    Returns:
        places: (tile along outputs, tile along inputs) of each of R tiles.
        row, out, into: (O, I) indices: the tile among R, and the channels in it.
    """
    outputs, depth = matrix
    size = outputs // groups
    at = torch.arange(outputs).unsqueeze(1)
    inputs = at // size * depth + torch.arange(depth)  # (O, I)
    if reads:
        inputs = channel_tiles(reads, tile).places(tile)[inputs]
    pairs = torch.stack([(at // tile).expand_as(inputs), inputs // tile], dim=-1)
    unique, row = pairs.flatten(0, 1).unique(dim=0, return_inverse=True)
    places = tuple((a, b) for a, b in unique.tolist())
    return places, row.view_as(inputs), (at % tile).expand_as(inputs), inputs % tile


@functools.cache
def mixture(tiles: tuple[int, int], decoded: tuple[int, int]) -> Tensor:
    """(A · B, a · b): how much of each decoded tile is in each tile of a weight, at unit norm.

    Each is the tile that a repetition would put there, with a little of all of them in proportions
    of its own, so that no filter is a copy of another.
    """
    across = torch.arange(math.prod(tiles))
    rows = across // tiles[1] % decoded[0]
    columns = across % tiles[1] % decoded[1]
    count = math.prod(decoded)
    repeated = F.one_hot(rows * decoded[1] + columns, count)
    # Quadratic phases: as good as random, and the same everywhere.
    numbers = torch.arange(1, len(across) * count + 1, dtype=torch.float64).view(-1, count)
    phases = (numbers**2 * ((1 + math.sqrt(5)) / 2)).frac() - 0.5
    little = F.normalize(phases, dim=1) * _MIXED
    return F.normalize(repeated + little, dim=1).float()


@functools.cache
def place_features(tiles: int) -> Tensor:
    """(tiles, 16): sines and cosines of a tile's index, all different below 256 tiles.

    The first has zeros.
    """
    periods = 2.0 ** torch.arange(1, PLACE_FEATURES // 2 + 1, dtype=torch.float32)
    angles = torch.arange(tiles).unsqueeze(1) * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos() - 1], dim=1)
