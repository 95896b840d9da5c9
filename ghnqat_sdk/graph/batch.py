"""Graphs as padded tensors: what an encoder reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.graph.graph import ComputationGraph, Node

BIT_ANCHORS = (2, 4, 8, FLOAT_BITS)
"""Bit-widths with an embedding of their own; those between are interpolated."""

_PERIODS = (4, 8, 16, 32, 64, 128)
"""Periods, in nodes, of the sines and cosines that tell a node's place from the input and from the
output."""

_FAR = 4
"""Where the distance to the output stops counting: networks deeper than those of a training run
keep to its range."""

FEATURES = 12 + 4 * len(_PERIODS)
"""Numbers that describe a node's shape and place."""


@dataclass(frozen=True)
class GraphBatch:
    """B graphs padded to the same number N of nodes.

    Attributes:
        ops: (B, N) int64, index of each node's type in the vocabulary.
        features: (B, N, FEATURES) float32, sizes on a log scale and place in the order.
        weight_bits, activation_bits: (B, N, 4) float32, each row a point between the anchors 2, 4,
            8 and 32.
        mask: (B, N) bool, true for nodes, false for padding.
        graphs: The B graphs.
        s_max: Longest shortest path that counts.
    """

    ops: Tensor
    features: Tensor
    weight_bits: Tensor
    activation_bits: Tensor
    mask: Tensor
    graphs: tuple[ComputationGraph, ...]
    s_max: int

    @cached_property
    def paths(self) -> Tensor:
        """(B, N, N) int8; entry (u, v) is the length of the shortest path from u to v, 0 for none
        up to s_max."""
        size = self.mask.shape[1]
        paths = torch.zeros(len(self.graphs), size, size, dtype=torch.int8)
        for row, graph in enumerate(self.graphs):
            paths[row, : len(graph), : len(graph)] = graph.shortest_paths(self.s_max)
        return paths.to(self.mask.device)

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        names = ("ops", "features", "weight_bits", "activation_bits", "mask")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def batch_graphs(
    graphs: Sequence[ComputationGraph], vocabulary: Mapping[str, int], s_max: int
) -> GraphBatch:
    """Pad and stack graphs; `vocabulary` gives each node type's index, "other" standing in for
    unknown ones."""
    size = max(len(graph) for graph in graphs)
    ops = torch.zeros(len(graphs), size, dtype=torch.int64)
    features = torch.zeros(len(graphs), size, FEATURES, dtype=torch.float32)
    weight_bits, activation_bits = (
        torch.zeros(len(graphs), size, len(BIT_ANCHORS), dtype=torch.float32) for _ in range(2)
    )
    mask = torch.zeros(len(graphs), size, dtype=torch.bool)
    for row, graph in enumerate(graphs):
        n = len(graph)
        ops[row, :n] = torch.tensor(
            [vocabulary.get(node.op, vocabulary["other"]) for node in graph.nodes]
        )
        features[row, :n] = _features(graph)
        weight_bits[row, :n] = torch.tensor([_anchored(node.bits[0]) for node in graph.nodes])
        activation_bits[row, :n] = torch.tensor([_anchored(node.bits[1]) for node in graph.nodes])
        mask[row, :n] = True
    return GraphBatch(ops, features, weight_bits, activation_bits, mask, tuple(graphs), s_max)


def _features(graph: ComputationGraph) -> Tensor:
    """(N, FEATURES) of a graph, worked out once."""
    if "features" not in graph.cache:
        sizes = torch.tensor([_sizes(node) for node in graph.nodes])
        graph.cache["features"] = torch.cat([sizes, _places(len(graph))], dim=1)
    return graph.cache["features"]


@functools.cache
def _anchored(bits: int) -> list[float]:
    """Linear interpolation between the two anchors around `bits`."""
    weights = [0.0] * len(BIT_ANCHORS)
    for i, (low, high) in enumerate(pairwise(BIT_ANCHORS)):
        if low <= bits <= high:
            weights[i], weights[i + 1] = (high - bits) / (high - low), (bits - low) / (high - low)
            break
    return weights


def _sizes(node: Node) -> list[float]:
    """Sizes on a log2 scale, divided so that most lie in 0 … 1."""
    shape = node.parameters[0].shape if node.parameters else ()
    out_channels = shape[0] if shape else 1
    in_channels = shape[1] if len(shape) > 1 else 1
    return [
        math.log2(max(out_channels, 1)) / 8,
        math.log2(max(in_channels, 1)) / 8,
        math.log2(max(in_channels * node.kernel[0] * node.kernel[1], 1)) / 12,
        node.kernel[0] / 4,
        node.kernel[1] / 4,
        math.log2(max(node.stride)),
        math.log2(max(node.dilation)),
        math.log2(max(node.groups, 1)) / 8,
        float(bool(node.parameters)),
    ]


def _places(size: int) -> Tensor:
    """(N, 3 + 4 · periods): the place of each of N nodes, from the input and from the output,
    plainly and as waves.

    The waves keep layers of one type and shape apart: without them an untrained hypernetwork gives
    all of them nearly the same weights, which takes it long to unlearn.
    """
    index = torch.arange(size, dtype=torch.float64)
    left = size - index
    plain = (
        index / size,
        (left / 64).clamp(max=_FAR),
        torch.full_like(index, min(math.log2(size) / 8, 1.0)),
    )
    angles = [2 * math.pi * place.unsqueeze(1) / torch.tensor(_PERIODS) for place in (index, left)]
    waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
    return torch.cat([torch.stack(plain, dim=1), *waves], dim=1).float()
