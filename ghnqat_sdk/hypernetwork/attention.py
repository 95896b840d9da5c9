"""Attention among the nodes of each graph, in strips, with biases by directed distance.

In a large graph a strip of nodes that are neighbours in the order looks only at those that one of
its nodes can hear, so that cost grows linearly with the graph.

Letters: N nodes, K tokens that a strip hears, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIP = 256
"""Tokens whose attention is computed at once."""

LayerStrip = tuple[slice, Tensor | None, Tensor]
"""Tokens of a graph, the tokens (K,) that they hear (None: all), and biases (heads, rows, K)."""


class Strip(NamedTuple):
    """Tokens of a graph, and what they hear.

    Attributes:
        rows: The tokens.
        heard: (K,) tokens, None for all.
        biases: (heads, rows, K) of each layer.
    """

    rows: slice
    heard: Tensor | None
    biases: tuple[Tensor, ...]

    def at(self, layer: int) -> LayerStrip:
        """For one layer."""
        return self.rows, self.heard, self.biases[layer]


def bucket_strips(paths: Tensor, s_max: int) -> Iterator[tuple[slice, Tensor | None, Tensor]]:
    """(rows, (K,) tokens that they hear, (rows, K) buckets of their distances) of a graph's tokens.

    Token 0 is the summary token, token i + 1 is node i. Buckets: 0 itself, 1 … s_max ahead,
    s_max + 1 … 2 s_max behind, then to and from the summary token; the last is for those too far
    apart.

    Args:
        paths: (N, N) shortest paths, 0 for none.
        s_max: The longest that counts.
    """
    count = len(paths)
    to_summary = 2 * s_max + 1
    from_summary = to_summary + 1
    first = torch.full((1, count + 1), to_summary)
    first[0, 0] = from_summary
    if count < _STRIP:
        buckets = _buckets(paths.long(), paths.T.long(), s_max)
        buckets = F.pad(buckets, (1, 0), value=from_summary)
        buckets.diagonal(1).fill_(0)
        yield slice(0, count + 1), None, torch.cat([first, buckets])
        return
    yield slice(0, 1), torch.arange(count + 1), first
    for start in range(0, count, _STRIP):
        rows = slice(start, min(start + _STRIP, count))
        near = (paths[rows] | paths[:, rows].T).amax(dim=0) > 0
        near[rows] = True
        heard = near.nonzero().flatten()
        ahead = paths[rows][:, heard].long()
        behind = paths[:, rows][heard].T.long()
        buckets = _buckets(ahead, behind, s_max)
        buckets[torch.arange(rows.start, rows.stop)[:, None] == heard] = 0
        buckets = F.pad(buckets, (1, 0), value=from_summary)
        yield slice(rows.start + 1, rows.stop + 1), F.pad(heard + 1, (1, 0)), buckets


def _buckets(ahead: Tensor, behind: Tensor, s_max: int) -> Tensor:
    """(rows, K) distances along and against the data flow to buckets."""
    apart = 2 * s_max + 3
    return torch.where(ahead > 0, ahead, torch.where(behind > 0, behind + s_max, apart))


class TakeColumns(torch.autograd.Function):
    """table (R, n) at columns (M,): (R, M); its gradient is one product, not M additions."""

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


class Block(nn.Module):
    """One layer of a pre-norm transformer over the tokens of all graphs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, graphs: Sequence[Sequence[LayerStrip]]) -> Tensor:
        """(tokens, d) of all graphs to the same."""
        together = self.qkv(self.norm1(hidden))
        together = together.unflatten(-1, (3, self.heads, -1))  # (tokens, 3, heads, d / heads)
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
