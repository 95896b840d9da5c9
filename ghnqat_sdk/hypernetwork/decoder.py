"""Node embeddings to parameter tensors; tensors of one kind are decoded together, across networks.

A weight is decoded position by position (GHN-2's convolutional decoder, Knyazev et al. 2021) in
tiles of 64 × 64 channels, and a mixture of banks is added: K tables of weights that all networks
share, mixed by how deep a node stands, so that channels mean the same in layers of one depth. Every
tile has a place embedding that enters before the nonlinearity and scales the mixture, so that a
tensor larger than one tile is not a repetition of it: repeating a tile leaves 64 distinct filters
and rank 64. A dense weight of more than 16 tiles is made of its first 4 × 4 decoded ones and of the
banks, which costs a few multiply-adds for each number and keeps every filter distinct: see `_large`
in tasks.py. Of the other tables all tiles are decoded.

Letters: V nodes, d embedding, h hidden, t tile, M tensors of one kind, R tiles of them, k kernel
positions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn

from ghnqat_sdk.configs import Part
from ghnqat_sdk.hypernetwork.assemble import Corners
from ghnqat_sdk.hypernetwork.banks import Banks, Shares
from ghnqat_sdk.hypernetwork.places import PLACE_FEATURES, place_features
from ghnqat_sdk.hypernetwork.scaling import VECTOR_ROLES, scale_vectors
from ghnqat_sdk.hypernetwork.tasks import Corner, Task
from ghnqat_sdk.hypernetwork.tiles import Cut, Request, TileIndex, centre, centred, slices
from ghnqat_sdk.plugins import Custom

_IDENTITY = 3.0
_TABLES = {"dense": "dense", "grouped": "dense", "depthwise": "depthwise", "classes": "classes"}


class Decoder(nn.Module):
    """Node embeddings to parameters: the base of all decoders."""

    def forward(
        self,
        nodes: Tensor,
        depths: Tensor,
        requests: Sequence[Request],
        *,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        """One float32 tensor for each request, of the shape in its cut.

        Args:
            nodes: (V, d) embeddings.
            depths: (V,) where each node stands in its network, from 0 to 1.
            requests: What to decode.
            channels_last: Layout of the weights of convolutions.
            dtype: Of the products that make tiles; bfloat16 is faster where the processor has it.
        """
        raise NotImplementedError


class DecoderConfig(Part):
    """Sizes of the decoder."""

    hidden: int = Field(default=128, ge=8, le=4096)
    """Channels between a node's embedding and a tile."""
    tile: int = Field(default=64, ge=4, le=512)
    """Output and input channels of one tile."""
    kernel: int = Field(default=7, ge=1, le=31)
    """Kernel positions with weights of their own; smaller kernels use the centre, larger ones the
    nearest position."""
    banks: int = Field(default=16, ge=0, le=256)
    """Tables that are mixed by depth and added to the decoded tiles; 0 for none."""
    bank_kernel: int = Field(default=5, ge=1, le=31)
    """Kernel positions of a bank; it adds nothing outside of them."""
    follows: bool = True
    """Whether channels mean the same behind concatenations, shuffles and flattening as before: each
    part of what a layer reads begins a tile of its own."""

    @model_validator(mode="before")
    @classmethod
    def _without_second(cls, values: Any) -> Any:
        """Files of before 0.1.0 say that there is no second layer, which none has now."""
        if isinstance(values, dict) and values.get("second") == 0:
            return {name: value for name, value in values.items() if name != "second"}
        return values

    def build(self, width: int, num_classes: int) -> Decoder:
        """The decoder of embeddings of size `width`."""
        return TileDecoder(self, width, num_classes)


class CustomDecoder(Custom):
    """A decoder of a user's own: `factory(width, num_classes, **settings)`, a `Decoder`."""

    type: Literal["custom"] = "custom"
    tile: int = Field(default=64, ge=4, le=512)
    """Output and input channels of the tiles in the cuts that it is asked for."""
    follows: ClassVar[bool] = False
    """Its cuts are of channels as they are counted."""

    def build(self, width: int, num_classes: int) -> Decoder:
        """The decoder of embeddings of size `width`.

        Raises:
            ArgumentError: its class is not imported, or cannot be made.
        """
        return self.make(Decoder, width, num_classes)


def _variant(config: Any) -> str:
    own = isinstance(config, CustomDecoder) or (isinstance(config, dict) and "factory" in config)
    return "custom" if own else "tiles"


AnyDecoderConfig = Annotated[
    Annotated[DecoderConfig, Tag("tiles")] | Annotated[CustomDecoder, Tag("custom")],
    Discriminator(_variant),
]


class TileDecoder(Decoder):
    """The decoder that this file describes."""

    def __init__(self, config: DecoderConfig, width: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        hidden, tile, kernel = config.hidden, config.tile, config.kernel
        # Node embeddings are layer-normed, not rectified, hence half the variance.
        self.position = nn.Parameter(_kaiming(kernel, kernel, hidden, width) / math.sqrt(2))
        self.place_out = nn.Linear(PLACE_FEATURES, hidden)
        self.place_in = nn.Linear(PLACE_FEATURES, hidden)
        self.dense = _Table((tile, tile), hidden)
        self.depthwise = _Table((tile,), hidden)
        self.classes = _Table((num_classes, tile), hidden)
        self.vector_in = nn.Linear(width, hidden)
        self.vectors = _Table((len(VECTOR_ROLES), tile), hidden)
        nn.init.kaiming_normal_(self.vector_in.weight, nonlinearity="linear")
        nn.init.zeros_(self.vector_in.bias)
        self.banks = Banks(config.banks, tile, config.bank_kernel, width) if config.banks else None
        # Untrained weights start near a blur that keeps each channel: then a channel shows the same
        # thing in all networks, however deep, and learning need not begin with making them agree.
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
        if not requests:
            return []
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[request.cut.group].append(index)
        chosen = [[requests[index] for index in members] for members in groups.values()]
        decoded: list[Tensor] = [nodes] * len(requests)
        tasks = self._tasks(nodes, depths, chosen, channels_last, dtype)
        for members, task in zip(groups.values(), tasks, strict=True):
            for index, tensor in zip(members, self._decoded(task), strict=True):
                decoded[index] = tensor
        return decoded

    def _decoded(self, task: Task) -> Sequence[Tensor]:
        if task.first.table == "vectors":
            return self._vectors(task)
        return task.weights(task.hidden())

    def _tasks(
        self,
        nodes: Tensor,
        depths: Tensor,
        chosen: Sequence[Sequence[Request]],
        channels_last: bool,
        dtype: torch.dtype,
    ) -> list[Task]:
        """What each group of requests is decoded from; what groups share is worked out once."""
        every = [request for requests in chosen for request in requests]
        rows = torch.tensor([request.row for request in every], device=nodes.device)
        sizes = [len(requests) for requests in chosen]
        gathered = nodes[rows].split(sizes)  # (M, d) each
        firsts = [requests[0].cut for requests in chosen]
        most = max(max(request.cut.tiles) for request in every)
        features = place_features(most).to(nodes)
        outwards = self.place_out(features)
        inwards = self.place_in(features)
        shares: Sequence[Shares | None] = [None] * len(chosen)
        if self.banks is not None:
            shares = self.banks.shares(nodes[rows], depths[rows], sizes, features)
        corners = self._corners([first for first in firsts if first.table != "vectors"], dtype)
        projected = self._projected(gathered, firsts)
        return [
            Task(
                requests=requests,
                tiles=TileIndex.of(requests, nodes.device),
                projected=of_group,
                corner=corners.get(requests[0].cut.group),
                outwards=outwards,
                inwards=inwards,
                shares=share,
                channels_last=channels_last,
            )
            for requests, of_group, share in zip(chosen, projected, shares, strict=True)
        ]

    def _projected(self, gathered: Sequence[Tensor], firsts: Sequence[Cut]) -> list[Tensor]:
        """(M, k, h) of the nodes (M, d) of each group, one product for all groups of a kernel."""
        projected = list(gathered)
        of_kernel: dict[tuple[int, int] | None, list[int]] = defaultdict(list)
        for index, first in enumerate(firsts):
            of_kernel[None if first.table == "vectors" else first.kernel].append(index)
        positions = self._positions([kernel for kernel in of_kernel if kernel is not None])
        for kernel, members in of_kernel.items():
            together = torch.cat([gathered[index] for index in members])
            if kernel is None:
                found = self.vector_in(together).unsqueeze(1)
            else:
                position = positions[kernel]  # (k, h, d)
                found = F.linear(together, position.flatten(0, 1)).unflatten(1, position.shape[:2])
            parts = found.split([len(gathered[index]) for index in members])
            for index, part in zip(members, parts, strict=True):
                projected[index] = part
        return projected

    def _positions(self, kernels: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """(k, h, d) of each kernel, cut from the table at once."""
        if not kernels:
            return {}
        size = self.config.kernel
        within = [centre(kernel, size) for kernel in kernels]
        pieces = Corners.apply(self.position, torch.float32, *within)
        return {
            kernel: centred(piece, kernel, size).flatten(0, 1)
            for kernel, piece in zip(kernels, pieces, strict=True)
        }

    def _corners(self, cuts: Sequence[Cut], dtype: torch.dtype) -> dict[tuple[object, ...], Corner]:
        """Weights of each group's corner, cut from each table at once."""
        found: dict[tuple[object, ...], Corner] = {}
        for name in ("dense", "depthwise", "classes"):
            wanted = [piece for piece in cuts if _TABLES[piece.table] == name]
            if not wanted:
                continue
            table: _Table = self.get_submodule(name)  # type: ignore[assignment]
            corners = [slices(piece) for piece in wanted]
            weights = Corners.apply(table.weight, dtype, *corners)
            biases = Corners.apply(table.bias, dtype, *corners)
            banks: Sequence[Tensor | None] = [None] * len(wanted)
            if self.banks is not None and name != "classes":
                banks = self.banks.corners(wanted, dtype, self.config.kernel)
            for piece, *of_piece in zip(wanted, weights, biases, banks, strict=True):
                found[piece.group] = Corner(*of_piece)
        return found

    def _vectors(self, task: Task) -> list[Tensor]:
        """Vectors of one role."""
        role = task.first.role
        table = VECTOR_ROLES.index(role)
        hidden = task.hidden()[:, 0]
        raw = F.linear(hidden, self.vectors.weight[table], self.vectors.bias[table])  # (R, t)
        lengths = [request.cut.tiles[0] * self.config.tile for request in task.requests]
        pieces = scale_vectors(raw, role).flatten().split(lengths)
        return [_cropped(piece, r.cut) for piece, r in zip(pieces, task.requests, strict=True)]


def _cropped(vector: Tensor, piece: Cut) -> Tensor:
    """A vector of all that its tiles hold to the tensor's channels."""
    if piece.factor != 1:
        vector = vector * piece.factor
    channels = piece.channels
    if channels is None:
        return vector[: piece.matrix[0]].view(piece.shape)
    return vector.index_select(0, channels.to(vector.device)).view(piece.shape)


class _Table(nn.Module):
    """A linear layer from h to a table of outputs, of which corners are computed alone."""

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_kaiming(*shape, hidden))
        self.bias = nn.Parameter(torch.zeros(shape))


def _kaiming(*shape: int) -> Tensor:
    """Normal values that keep the variance of a rectified input of size shape[-1]."""
    return torch.randn(shape) * math.sqrt(2 / shape[-1])
