"""A CNN as a frozen graph: nodes with parameter shapes and bit-widths, and the shortest paths
between them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ghnqat_sdk.bits import FLOAT_BITS, parse_bits
from ghnqat_sdk.graph.channels import Runs
from ghnqat_sdk.graph.ops import BY_NAME, Role

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor that the hypernetwork predicts: its name in the model, its shape and its role in
    the node."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def is_weight(self) -> bool:
        """Whether it is of the kind that layers quantize."""
        table = self.role == "table" and len(self.shape) > 1
        return table or self.role == "weight"


@dataclass(frozen=True)
class Node:
    """One operation of a CNN.

    Attributes:
        op: A name of `ghnqat_sdk.graph.ops.VOCABULARY`.
        module: Qualified name of the module that ran it, "" for the model itself.
        parameters: The parameters that it alone introduces (a shared tensor belongs to the node
            that used it first).
        kernel, stride, dilation: (height, width); (1, 1) where they mean nothing.
        groups: Groups of a convolution.
        bits: (weight, activation) bit-widths, 32 for float.
        epsilon: What a norm adds to the variance that it divides by, 0 for others.
        reads: Where the channels come from that its weight meets, () where they are those of one
            tensor as it is.
    """

    op: str
    module: str = ""
    parameters: tuple[ParameterSpec, ...] = ()
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bits: tuple[int, int] = (FLOAT_BITS, FLOAT_BITS)
    epsilon: float = 0.0
    reads: Runs = ()

    @property
    def quantized(self) -> bool:
        """Whether this kind of node has a fake-quantized weight and input."""
        return BY_NAME[self.op].quantized


@dataclass(frozen=True)
class Head:
    """What makes an output of the scores of classes.

    Attributes:
        parameters: Names, that of the weight first.
        classes: K, how many it tells apart.
    """

    parameters: tuple[str, ...]
    classes: int


@dataclass(frozen=True)
class ComputationGraph:
    """A CNN as operations in order of execution and the data flow between them.

    Attributes:
        nodes: N operations, in a topological order.
        edges: Pairs (source, target) of node indices, source < target.
        unreached: Parameters that no node claims, name to reason.
        outside: Modules whose weight is used by an operation that no layer runs, name to reason.
        dense: Weights of classifiers whose scores are those of places, not of a whole image.
        joined: Where the channels of a module's output come from, by name, where it is not one
            tensor as it is.
        heads: Classifiers, and heads of other kinds.
        statistics: Modules that hand running statistics to one of torch's norms.
        outputs: Shapes of what the run gave.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    unreached: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict, compare=False)
    dense: tuple[str, ...] = field(default=(), compare=False)
    joined: Mapping[str, Runs] = field(default_factory=dict, compare=False)
    heads: tuple[Head, ...] = field(default=(), compare=False)
    statistics: tuple[str, ...] = field(default=(), compare=False)
    outputs: tuple[tuple[int, ...], ...] = field(default=(), compare=False)
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was worked out from the structure alone; shared with the same graph at other
    bit-widths."""

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def parameters(self) -> dict[str, ParameterSpec]:
        """Every parameter that a node claims, by name."""
        return {parameter.name: parameter for node in self.nodes for parameter in node.parameters}

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """Of each node, the nodes that read it, in the order of the edges."""
        return _neighbours(len(self), self.edges)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Of each node, the nodes that it reads, in the order of the edges."""
        return _neighbours(len(self), ((target, source) for source, target in self.edges))

    def biases(self, index: int) -> tuple[int, ...]:
        """The biases that are added to a node's output."""
        return tuple(i for i in self.successors[index] if self.nodes[i].op == "bias")

    def readers(self, index: int) -> tuple[int, ...]:
        """The nodes that read a node's output, or it with its bias."""
        biases = self.biases(index)
        behind = (reader for bias in biases for reader in self.successors[bias])
        return (*(i for i in self.successors[index] if i not in biases), *behind)

    def classifiers(self) -> Iterator[tuple[Node, tuple[int, ...], tuple[int, ...]]]:
        """Each classifier, its biases, and the nodes that read its scores."""
        for index, node in enumerate(self.nodes):
            if node.op == "classifier":
                yield node, self.biases(index), self.readers(index)

    def with_bits(
        self, bits: tuple[int, int] | Callable[[Node], tuple[int, int]]
    ) -> ComputationGraph:
        """The same graph with other bit-widths: one (weight, activation) pair, or a function of the
        node.

        Raises:
            ArgumentError: bits that are no such pair.
        """
        if callable(bits):
            pairs = [parse_bits(bits(node)) for node in self.nodes]
        else:
            pairs = [parse_bits(bits)] * len(self)
        told = zip(self.nodes, pairs, strict=True)
        return replace(self, nodes=tuple(replace(node, bits=pair) for node, pair in told))

    def shortest_paths(self, s_max: int) -> Tensor:
        """Directed shortest-path lengths up to `s_max`: virtual edges (GHN-2, Knyazev et al. 2021).

        Returns:
            (N, N) int8; entry (u, v) is the number of edges from u to v, 0 where there is no path
            of at most `s_max`.
        """
        key = "paths", s_max
        if key not in self.cache:
            self.cache[key] = _shortest_paths(self.successors, s_max)
        return self.cache[key]

    def to_networkx(self) -> networkx.DiGraph:
        """The graph for networkx: node attributes are the fields of `Node`, indices are the
        keys."""
        import networkx

        graph = networkx.DiGraph()
        for index, node in enumerate(self.nodes):
            graph.add_node(
                index, **{name: getattr(node, name) for name in Node.__dataclass_fields__}
            )
        graph.add_edges_from(self.edges)
        return graph


def _neighbours(size: int, edges: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    found: list[list[int]] = [[] for _ in range(size)]
    for node, neighbour in edges:
        found[node].append(neighbour)
    return tuple(map(tuple, found))


def _shortest_paths(successors: Sequence[Sequence[int]], s_max: int) -> Tensor:
    """Reachable nodes as bits of one number for each node, step by step: bit j of node u stands for
    node u + j.

    Linear in the number of nodes for CNNs, where what is near in steps is near in order.
    """
    size = len(successors)
    if not any(successors):
        return torch.zeros(size, size, dtype=torch.int8)
    within, steps = [1] * size, []
    for _ in range(s_max):
        within = [
            functools.reduce(operator.or_, (within[s] << (s - u) for s in successors[u]), 1)
            for u in range(size)
        ]
        steps.append(within)
    width = (max(reach.bit_length() for reach in within) + 7) // 8
    band = torch.zeros(
        size, 8 * width, dtype=torch.int8
    )  # in how many of the steps u + j is reachable from u
    for reached in steps:
        octets = torch.frombuffer(
            bytearray(b"".join(r.to_bytes(width, "little") for r in reached)), dtype=torch.uint8
        )
        band += ((octets.view(size, width, 1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1)
    lengths = torch.where(band > 0, s_max + 1 - band, 0)
    lengths[:, 0] = 0
    paths = torch.zeros(size, size + 8 * width, dtype=torch.int8)
    paths.as_strided(lengths.shape, (paths.shape[1] + 1, 1)).copy_(lengths)  # row u moved by u
    return paths[:, :size]
