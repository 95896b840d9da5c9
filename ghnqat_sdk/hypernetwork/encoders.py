"""Graph encoders: a batch of computation graphs to one embedding for each node.

Each encoder is a config and a module side by side; `EncoderConfig` is their union. To add one, write both here and
add the config to the union.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ghnqat_sdk.graph.batch import BIT_ANCHORS, FEATURES, GraphBatch


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
                nn.Linear(config.width, config.width // 2), nn.ReLU(), nn.Linear(config.width // 2, config.width)
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

    Attention runs in strips of nodes that are neighbours in the order: each looks only at those that one of its nodes
    can hear, so that cost grows linearly with the graph.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, s_max: int) -> None:
        super().__init__()
        self.config, self.s_max = config, s_max
        self.embedding = NodeEmbedding(vocabulary, config.width)
        self.summary = nn.Parameter(torch.zeros(config.width))
        # Buckets: 0 itself, 1 … s_max ahead, s_max + 1 … 2 s_max behind, then to and from the summary token.
        self.distance = nn.Embedding(2 * s_max + 3, config.layers * config.heads)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.layers = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, batch: GraphBatch) -> Tensor:
        hidden = torch.cat([self.summary.expand(len(batch.ops), 1, -1), self.embedding(batch)], dim=1)
        strips = list(self._strips(batch))
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, [(rows, heard, biases[index]) for rows, heard, biases in strips])
        return self.norm(hidden[:, 1:])

    def _strips(self, batch: GraphBatch) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, (K,) tokens that they hear, (layers, B, heads, rows, K) biases, -inf for those too far apart).

        Token 0 is the summary token, token i + 1 is node i.
        """
        paths, (size, count) = batch.paths, batch.ops.shape
        nodes = torch.arange(count, device=paths.device)
        summary = torch.full((size, 1, count + 1), 2 * self.s_max + 1, device=paths.device)
        summary[:, :, 0] += 1
        present = F.pad(batch.mask, (1, 0), value=True)
        yield slice(0, 1), torch.arange(count + 1, device=paths.device), self._biases(summary, present.unsqueeze(1))
        for start in range(0, count, _STRIP):
            rows = slice(start, min(start + _STRIP, count))
            near = (paths[:, rows] | paths[:, :, rows].mT).amax(dim=(0, 1)) > 0
            near[rows] = True
            heard = near.nonzero().flatten()
            ahead, behind = paths[:, rows][:, :, heard].long(), paths[:, :, rows][:, heard].mT.long()
            buckets = torch.where(ahead > 0, ahead, torch.where(behind > 0, behind + self.s_max, 0))
            apart = ((buckets == 0) & (nodes[rows, None] != heard)) | ~batch.mask[:, None, heard]
            buckets, within = F.pad(buckets, (1, 0), value=2 * self.s_max + 2), F.pad(~apart, (1, 0), value=True)
            yield slice(rows.start + 1, rows.stop + 1), F.pad(heard + 1, (1, 0)), self._biases(buckets, within)

    def _biases(self, buckets: Tensor, within: Tensor) -> Tensor:
        """(B, rows, K) buckets to (layers, B, heads, rows, K)."""
        biases = self.distance(buckets).masked_fill(~within.unsqueeze(-1), float("-inf"))
        biases = biases.permute(3, 0, 1, 2).unflatten(0, (self.config.layers, self.config.heads))
        return biases.transpose(1, 2)


_STRIP = 256
"""Tokens whose attention is computed at once."""


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, strips: Sequence[tuple[slice, Tensor, Tensor]]) -> Tensor:
        q, k, v = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = [
            F.scaled_dot_product_attention(q[:, :, rows], k[:, :, heard], v[:, :, heard], attn_mask=bias)
            for rows, heard, bias in strips
        ]
        hidden = hidden + self.out(torch.cat(attended, dim=2).transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm2(hidden))


EncoderConfig = Annotated[GatedGraphConfig | TransformerConfig, Field(discriminator="type")]
