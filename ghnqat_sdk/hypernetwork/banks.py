"""Tables of weights that all networks share, mixed by how deep a node stands.

Letters: V nodes, d embedding, K banks, M tensors of one kind, R tiles of them, k kernel positions,
(o, i) channels of a tile's corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.hypernetwork.assemble import Corners
from ghnqat_sdk.hypernetwork.places import PLACE_FEATURES
from ghnqat_sdk.hypernetwork.tiles import Cut, TileIndex, centre, centred, slices

_SIZE = 3.0
"""What the mixture of banks is multiplied by: banks start at zero and learn faster for it."""

_SPREAD = 1.5
"""Distance, in banks, at which one fades out of a node's mixture."""


class Shares(NamedTuple):
    """How much of each bank is in the tensors of a group.

    Attributes:
        parts: (M, K).
        outwards, inwards: (tiles, K), what the places of tiles make of it.
    """

    parts: Tensor
    outwards: Tensor
    inwards: Tensor

    def of(self, tiles: TileIndex) -> Tensor:
        """(R, K)"""
        if tiles.single:
            return _SIZE * F.normalize(self.parts, dim=1)  # the first place changes nothing
        by_place = 1 + self.outwards[tiles.out] + self.inwards[tiles.into]
        return _SIZE * F.normalize(self.parts[tiles.member] * by_place, dim=1)


class Banks(nn.Module):
    """K tables of weights, and how a node mixes them.

    A node at relative depth x mixes table k by a softmax over -((x - k / (K - 1)) · (K - 1) / 1.5)²
    plus a linear function of its embedding; every tile but the first scales the parts by a linear
    function of its place; the mixture has unit norm, times 3.

    Args:
        count: K.
        tile: Output and input channels of one tile.
        kernel: Kernel positions along each side.
        width: d.
    """

    def __init__(self, count: int, tile: int, kernel: int, width: int) -> None:
        super().__init__()
        self.count = count
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
        """(K, k · o · i) of each of `cuts`; decoded tiles have `kernel` positions a side."""
        found: dict[int, Tensor] = {}
        for name in ("dense", "point", "depthwise"):
            table = getattr(self, name)
            members = [index for index, piece in enumerate(cuts) if _table_of(piece) == name]
            if not members:
                continue
            within = [
                (*centre(cuts[index].kernel, len(table)), slice(None), *slices(cuts[index]))
                for index in members
            ]
            pieces = Corners.apply(table, dtype, *within)
            for index, piece in zip(members, pieces, strict=True):
                positions = centred(piece, cuts[index].kernel, kernel)
                found[index] = positions.flatten(0, 1).transpose(0, 1).flatten(1)
        return [found[index] for index in range(len(cuts))]

    def shares(
        self, nodes: Tensor, depths: Tensor, sizes: Sequence[int], features: Tensor
    ) -> list[Shares]:
        """How much of each table is in the tensors of each group.

        Args:
            nodes: (V, d) of all groups, one after another.
            depths: (V,)
            sizes: Tensors in each group.
            features: (tiles, 16) of places.
        """
        centres = torch.linspace(0, 1, self.count, dtype=nodes.dtype, device=nodes.device)
        near = -(((depths.unsqueeze(1) - centres) * ((self.count - 1) / _SPREAD)) ** 2)
        parts = torch.softmax(near + self.gate(nodes), dim=1).split(list(sizes))
        outwards = self.place_out(features)
        inwards = self.place_in(features)
        return [Shares(part, outwards, inwards) for part in parts]


def _table_of(piece: Cut) -> str:
    if piece.table == "depthwise":
        return "depthwise"
    return "point" if piece.kernel == (1, 1) else "dense"
