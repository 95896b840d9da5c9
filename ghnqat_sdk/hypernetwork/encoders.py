"""Graph encoders: a batch of computation graphs to one embedding for each node.

Each encoder is a config and a module side by side; `EncoderConfig` is their union. `CustomEncoder`
is the config of one that is written elsewhere.

Letters: B graphs, N nodes, d embedding.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ghnqat_sdk.configs import Part
from ghnqat_sdk.graph.batch import BIT_ANCHORS, FEATURES, GraphBatch
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.hypernetwork.attention import Block, Strip, TakeColumns, bucket_strips
from ghnqat_sdk.plugins import Custom


class Encoder(nn.Module):
    """The base of all encoders.

    Args:
        width: Size d of a node's embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, batch: GraphBatch) -> Tensor:
        """(B, N, d), of about unit variance; what padding gets is never read."""
        raise NotImplementedError


class NodeEmbedding(nn.Module):
    """Type, sizes and bit-widths of every node as one vector: (B, N, d)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.op = nn.Embedding(vocabulary, width)
        first = nn.Linear(FEATURES, width)
        second = nn.Linear(width, width)
        self.features = nn.Sequential(first, nn.GELU(), second)
        self.weight_bits = nn.Linear(len(BIT_ANCHORS), width, bias=False)
        self.activation_bits = nn.Linear(len(BIT_ANCHORS), width, bias=False)
        # A node's sizes and place start as strong as its type, so that layers of one type differ
        # from the start.
        nn.init.normal_(self.op.weight, std=0.5)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, batch: GraphBatch) -> Tensor:
        bits = self.weight_bits(batch.weight_bits) + self.activation_bits(batch.activation_bits)
        return self.op(batch.ops) + self.features(batch.features) + bits


class GatedGraphConfig(Part):
    """GHN-2's encoder: a gated graph network with virtual edges (Knyazev et al. 2021)."""

    type: Literal["gated-graph"] = "gated-graph"
    width: int = Field(default=32, ge=4, le=1024)
    """Size d of a node's embedding."""
    rounds: int = Field(default=1, ge=1, le=16)
    """Forward-and-backward passes over the graph."""

    def build(self, vocabulary: int, s_max: int) -> Encoder:
        """The encoder for a vocabulary of node types."""
        return GatedGraphEncoder(self, vocabulary)


class GatedGraphEncoder(Encoder):
    """One pass along the data flow and one against it; each node hears those up to s_max behind it.

    m_v = Σ_u MLP(h_u) over direct neighbours + Σ_u MLP_vp(h_u) / s_uv over virtual edges;
    h_v = GRU(h_v, m_v). Nodes whose longest path from the input has the same length never hear each
    other, so a level is updated at once: the same result as node by node, in as many steps as the
    graph is deep.
    """

    def __init__(self, config: GatedGraphConfig, vocabulary: int) -> None:
        super().__init__(config.width)
        self.config = config
        self.embedding = NodeEmbedding(vocabulary, config.width)
        self.neighbour = _message(config.width)
        self.virtual = _message(config.width)
        self.cell = nn.GRUCell(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, batch: GraphBatch) -> Tensor:
        hidden = self.embedding(batch)
        direct = (batch.paths == 1).to(hidden.dtype)
        near = torch.where(batch.paths > 1, 1.0 / batch.paths.clamp(min=1), 0.0)
        virtual = near.to(hidden.dtype)
        for _ in range(self.config.rounds):
            for edges, far in ((direct.mT, virtual.mT), (direct, virtual)):
                hidden = self._sweep(hidden, edges, far, _levels(edges))
        return self.norm(hidden)

    def _sweep(self, hidden: Tensor, edges: Tensor, far: Tensor, levels: Tensor) -> Tensor:
        """`edges` and `far` (B, N, N): row v holds the weights of the nodes that v hears."""
        for level in range(int(levels.max()) + 1):
            at = (levels == level).nonzero(as_tuple=True)
            heard = edges[at].unsqueeze(1) @ self.neighbour(hidden)[at[0]]
            heard = heard + far[at].unsqueeze(1) @ self.virtual(hidden)[at[0]]
            hidden = hidden.index_put(at, self.cell(heard.squeeze(1), hidden[at]))
        return hidden


def _message(width: int) -> nn.Sequential:
    """What a node says to others."""
    return nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))


def _levels(edges: Tensor) -> Tensor:
    """(B, N): length of the longest path of direct edges into each node."""
    levels = torch.zeros(edges.shape[:2], dtype=torch.int64, device=edges.device)
    while True:
        deeper = (edges * (levels + 1).unsqueeze(1)).amax(dim=2).long()
        if torch.equal(deeper, levels):
            return levels
        levels = deeper


class TransformerConfig(Part):
    """Graph transformer (after GHN-3): attention among nodes at most s_max apart, biased by their
    directed distance."""

    type: Literal["transformer"] = "transformer"
    width: int = Field(default=64, ge=8, le=2048)
    """Size d of a node's embedding."""
    layers: int = Field(default=3, ge=1, le=48)
    heads: int = Field(default=4, ge=1, le=64)
    """Attention heads; they share the width evenly."""

    @model_validator(mode="after")
    def _even(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        return self

    def build(self, vocabulary: int, s_max: int) -> Encoder:
        """The encoder for a vocabulary of node types and virtual edges up to `s_max`."""
        return TransformerEncoder(self, vocabulary, s_max)


class TransformerEncoder(Encoder):
    """Pre-norm transformer over the nodes and one summary token, which hears all and is heard.

    The tokens of all graphs are rows of one matrix; attention runs graph by graph.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, s_max: int) -> None:
        super().__init__(config.width)
        self.config = config
        self.s_max = s_max
        self.embedding = NodeEmbedding(vocabulary, config.width)
        self.summary = nn.Parameter(torch.zeros(config.width))
        self.distance = nn.Embedding(2 * s_max + 3, config.layers * config.heads)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.layers = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, batch: GraphBatch) -> Tensor:
        """(B, N, d); padding gets zeros."""
        nodes = self.embedding(batch)
        summary = self.summary.expand(len(nodes), 1, -1)
        present = F.pad(batch.mask, (1, 0), value=True)
        hidden = torch.cat([summary, nodes], dim=1)[present]  # (tokens, d)
        strips = [self._strips(graph, nodes.device) for graph in batch.graphs]
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, [[strip.at(index) for strip in of_graph] for of_graph in strips])
        padded = nodes.new_zeros(*present.shape, nodes.shape[-1])
        return padded.masked_scatter(present.unsqueeze(-1), self.norm(hidden))[:, 1:]

    def _strips(self, graph: ComputationGraph, device: torch.device) -> list[Strip]:
        key = "strips", self.s_max
        if key not in graph.cache:
            graph.cache[key] = list(bucket_strips(graph.shortest_paths(self.s_max), self.s_max))
        table = self.distance.weight.T  # (layers · heads, buckets)
        apart = table.new_full((len(table), 1), float("-inf"))
        table = torch.cat([table, apart], dim=1)
        strips = []
        for rows, heard, buckets in graph.cache[key]:
            biases = TakeColumns.apply(table, buckets.flatten().to(device))
            biases = biases.view(self.config.layers, self.config.heads, *buckets.shape)
            nearby = None if heard is None else heard.to(device)
            strips.append(Strip(rows, nearby, biases.unbind()))
        return strips


class CustomEncoder(Custom):
    """An encoder of a user's own: `factory(vocabulary, s_max, **settings)`, an `Encoder`."""

    type: Literal["custom"] = "custom"

    def build(self, vocabulary: int, s_max: int) -> Encoder:
        """The encoder for a vocabulary of node types and virtual edges up to `s_max`.

        Raises:
            ArgumentError: its class is not imported, or cannot be made.
        """
        return self.make(Encoder, vocabulary, s_max)


EncoderConfig = Annotated[
    GatedGraphConfig | TransformerConfig | CustomEncoder, Field(discriminator="type")
]
