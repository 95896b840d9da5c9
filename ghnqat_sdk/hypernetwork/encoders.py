"""Graph encoders: a batch of computation graphs to one embedding for each node.

Each encoder is a config and a module side by side; `EncoderConfig` is their union. To add one, write both here and
add the config to the union.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ghnqat_sdk.graph.batch import BIT_ANCHORS, FEATURES, GraphBatch
from ghnqat_sdk.graph.graph import ComputationGraph


class NodeEmbedding(nn.Module):
    """Type, sizes and bit-widths of every node as one vector: (B, N, d)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.op = nn.Embedding(vocabulary, width)
        first, second = nn.Linear(FEATURES, width), nn.Linear(width, width)
        self.features = nn.Sequential(first, nn.GELU(), second)
        self.weight_bits = nn.Linear(len(BIT_ANCHORS), width, bias=False)
        self.activation_bits = nn.Linear(len(BIT_ANCHORS), width, bias=False)
        # A node's sizes and place start as strong as its type, so that layers of one type differ from the start.
        nn.init.normal_(self.op.weight, std=0.5)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, batch: GraphBatch) -> Tensor:
        bits = self.weight_bits(batch.weight_bits) + self.activation_bits(batch.activation_bits)
        return self.op(batch.ops) + self.features(batch.features) + bits


class GatedGraphConfig(BaseModel):
    """GHN-2's encoder: a gated graph network with virtual edges (Knyazev et al. 2021)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["gated-graph"] = "gated-graph"
    width: int = Field(32, ge=4, le=1024)
    """Size d of a node's embedding."""
    rounds: int = Field(1, ge=1, le=16)
    """Forward-and-backward passes over the graph."""

    def build(self, vocabulary: int, s_max: int) -> nn.Module:
        """The encoder for a vocabulary of node types."""
        return GatedGraphEncoder(self, vocabulary)


class GatedGraphEncoder(nn.Module):
    """One pass along the data flow and one against it; each node hears all nodes up to s_max steps behind it.

    m_v = Σ_u MLP(h_u) over direct neighbours + Σ_u MLP_vp(h_u) / s_uv over virtual edges; h_v = GRU(h_v, m_v).
    Nodes whose longest path from the input has the same length never hear each other, so a level is updated at once:
    the same result as node by node, in as many steps as the graph is deep.
    """

    def __init__(self, config: GatedGraphConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = NodeEmbedding(vocabulary, width)
        self.neighbour, self.virtual = (
            nn.Sequential(
                nn.Linear(config.width, config.width // 2),
                nn.ReLU(),
                nn.Linear(config.width // 2, config.width),
            )
            for _ in range(2)
        )
        self.cell = nn.GRUCell(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, batch: GraphBatch) -> Tensor:
        hidden = self.embedding(batch)
        direct = (batch.paths == 1).to(hidden.dtype)
        virtual = torch.where(batch.paths > 1, 1.0 / batch.paths.clamp(min=1), 0.0).to(hidden.dtype)
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


def _levels(edges: Tensor) -> Tensor:
    """(B, N): length of the longest path of direct edges into each node."""
    levels = torch.zeros(edges.shape[:2], dtype=torch.int64, device=edges.device)
    while True:
        deeper = (edges * (levels + 1).unsqueeze(1)).amax(dim=2).long()
        if torch.equal(deeper, levels):
            return levels
        levels = deeper


class TransformerConfig(BaseModel):
    """Graph transformer: attention among nodes at most s_max apart, biased by their directed distance (after GHN-3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["transformer"] = "transformer"
    width: int = Field(64, ge=8, le=2048)
    """Size d of a node's embedding."""
    layers: int = Field(3, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they share the width evenly."""

    @model_validator(mode="after")
    def _even(self) -> TransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}")
        return self

    def build(self, vocabulary: int, s_max: int) -> nn.Module:
        """The encoder for a vocabulary of node types and virtual edges up to `s_max`."""
        return TransformerEncoder(self, vocabulary, s_max)


class TransformerEncoder(nn.Module):
    """Pre-norm transformer over the nodes and one summary token that hears and is heard by every node.

    The tokens of all graphs are rows of one matrix; attention runs graph by graph, and in a large graph in strips of
    nodes that are neighbours in the order: each looks only at those that one of its nodes can hear, so that cost grows
    linearly with the graph.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, s_max: int) -> None:
        super().__init__()
        self.config, self.s_max = config, s_max
        self.embedding = NodeEmbedding(vocabulary, config.width)
        self.summary = nn.Parameter(torch.zeros(config.width))
        # Buckets: 0 itself, 1 … s_max ahead, s_max + 1 … 2 s_max behind, then to and from the summary token.
        self.distance = nn.Embedding(2 * s_max + 3, config.layers * config.heads)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.layers = nn.ModuleList(
            _Block(config.width, config.heads) for _ in range(config.layers)
        )
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

    def _strips(self, graph: ComputationGraph, device: torch.device) -> list[_Strip]:
        key = "strips", self.s_max
        if key not in graph.cache:
            graph.cache[key] = list(_bucket_strips(graph.shortest_paths(self.s_max), self.s_max))
        table = self.distance.weight.T  # (layers · heads, buckets)
        apart = table.new_full((len(table), 1), float("-inf"))
        table = torch.cat([table, apart], dim=1)
        strips = []
        for rows, heard, buckets in graph.cache[key]:
            biases = _TakeColumns.apply(table, buckets.flatten().to(device))
            biases = biases.view(self.config.layers, self.config.heads, *buckets.shape)
            strips.append(
                _Strip(rows, None if heard is None else heard.to(device), biases.unbind())
            )
        return strips


class _Strip(NamedTuple):
    """Tokens `rows` of a graph, the tokens (K,) that they hear (None: all), and biases (heads, rows, K) by layer."""

    rows: slice
    heard: Tensor | None
    biases: tuple[Tensor, ...]

    def at(self, layer: int) -> tuple[slice, Tensor | None, Tensor]:
        """For one layer."""
        return self.rows, self.heard, self.biases[layer]


_STRIP = 256
"""Tokens whose attention is computed at once."""


def _bucket_strips(paths: Tensor, s_max: int) -> Iterator[tuple[slice, Tensor | None, Tensor]]:
    """(rows, (K,) tokens that they hear, (rows, K) buckets of their distances) of a graph's tokens.

    Token 0 is the summary token, token i + 1 is node i; the last bucket is for those too far apart.

    Args:
        paths: (N, N) shortest paths, 0 for none.
        s_max: The longest that counts.
    """
    count = len(paths)
    to_summary, from_summary, apart = 2 * s_max + 1, 2 * s_max + 2, 2 * s_max + 3
    first = torch.full((1, count + 1), to_summary)
    first[0, 0] = from_summary
    if count < _STRIP:
        buckets = F.pad(
            _buckets(paths.long(), paths.T.long(), s_max, apart), (1, 0), value=from_summary
        )
        buckets.diagonal(1).fill_(0)
        yield slice(0, count + 1), None, torch.cat([first, buckets])
        return
    yield slice(0, 1), torch.arange(count + 1), first
    for start in range(0, count, _STRIP):
        rows = slice(start, min(start + _STRIP, count))
        near = (paths[rows] | paths[:, rows].T).amax(dim=0) > 0
        near[rows] = True
        heard = near.nonzero().flatten()
        buckets = _buckets(
            paths[rows][:, heard].long(), paths[:, rows][heard].T.long(), s_max, apart
        )
        buckets[torch.arange(rows.start, rows.stop)[:, None] == heard] = 0
        buckets = F.pad(buckets, (1, 0), value=from_summary)
        yield slice(rows.start + 1, rows.stop + 1), F.pad(heard + 1, (1, 0)), buckets


def _buckets(ahead: Tensor, behind: Tensor, s_max: int, apart: int) -> Tensor:
    """(rows, K) distances along and against the data flow to buckets."""
    return torch.where(ahead > 0, ahead, torch.where(behind > 0, behind + s_max, apart))


class _TakeColumns(torch.autograd.Function):
    """table (R, n) at columns (M,): (R, M); the gradient is one product instead of M additions in a row."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.count = table.shape[1]
        return table.index_select(1, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors
        chosen = gradient.new_zeros(ctx.count, len(columns)).scatter_(0, columns.unsqueeze(0), 1.0)
        return gradient @ chosen.T, None


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, hidden: Tensor, graphs: Sequence[Sequence[tuple[slice, Tensor | None, Tensor]]]
    ) -> Tensor:
        """(tokens, d) of all graphs to the same."""
        together = self.qkv(self.norm1(hidden)).unflatten(
            -1, (3, self.heads, -1)
        )  # (tokens, 3, heads, d / heads)
        sizes = [strips[-1][0].stop for strips in graphs]
        attended = []
        for tokens, strips in zip(together.split(sizes), graphs, strict=True):
            q, k, v = tokens.permute(1, 2, 0, 3).unsqueeze(1)  # (1, heads, N, d / heads) each
            for rows, heard, bias in strips:
                keys, values = (k, v) if heard is None else (k[:, :, heard], v[:, :, heard])
                found = F.scaled_dot_product_attention(
                    q[:, :, rows], keys, values, attn_mask=bias.unsqueeze(0)
                )
                attended.append(found[0].transpose(0, 1).flatten(1))
        hidden = hidden + self.out(torch.cat(attended))
        return hidden + self.mlp(self.norm2(hidden))


EncoderConfig = Annotated[GatedGraphConfig | TransformerConfig, Field(discriminator="type")]
