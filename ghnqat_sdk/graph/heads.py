"""Where a graph ends in the scores of classes, and which parameters make them.

Two rules; what the first finds, the second marks as well.

1. A head with more weights behind its own: an output (N, K), K scores for each image, is followed
   back over one path without branches: over what has no weights, and over scales, shifts, norms
   and slopes of one number or K, to a linear layer, a convolution of any kernel or a product with
   a matrix, K wide. Features end much alike: with an activation on the path, or behind a
   convolution with a norm or scales of K, what is found is a hidden layer and no head.
2. The last weights before any output, (N, K) or not, over any branches: linear layers and 1 × 1
   convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ghnqat_sdk.graph.graph import Node

_TABLED = ("linear", "conv", "classifier")  # what a hypernetwork's table of classes is made for
_SCORING = (*_TABLED, "grouped_conv", "matmul")
_NORMS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")
_ACTIVATIONS = ("relu", "relu6", "hardswish", "silu", "gelu", "leaky_relu")
_BY_CHANNEL = (*_NORMS, "prelu", "bias", "sum", "product")


@dataclass(frozen=True)
class Ends:
    """What leads to the outputs of a graph.

    Attributes:
        nodes: All nodes.
        before: Of each node, those that it reads.
        first: Of nodes that run with the weight of an earlier one, that one.
    """

    nodes: Sequence[Node]
    before: Mapping[int, Sequence[int]]
    first: Mapping[int, int]

    def heads(self, output: Tensor, sources: Sequence[int]) -> list[tuple[int, ...]]:
        """The nodes of each head behind an output that `sources` make: that of its weight, and
        those of its other parameters."""
        classes = output.numel() // len(output) if output.ndim > 1 and len(output) else 0
        scored, *others = self._chain(classes, sources) or (None,)
        found = self._last(sources) if scored is None else [scored]
        return [(i, *dict.fromkeys((*self._biases(i), *others))) for i in found]

    def tabled(self, index: int) -> bool:
        """Whether a head can be made from a table of classes."""
        node = self.nodes[index]
        return node.op in _TABLED and node.kernel == (1, 1)

    def _chain(self, classes: int, sources: Sequence[int]) -> list[int]:
        """By the first rule."""
        behind: list[int] = []
        while len(sources) == 1:
            index = self.first.get(sources[0], sources[0])
            node = self.nodes[index]
            if _scores(node, classes):
                convolves = len(node.parameters[0].shape) > 2
                hidden = convolves and any(_rescales(self.nodes[i]) for i in behind)
                return [] if hidden else [index, *behind]
            if not _passes(node, classes):
                return []
            behind += [index] if node.parameters else []
            sources = self.before.get(index, ())
        return []

    def _last(self, sources: Sequence[int]) -> Iterator[int]:
        """By the second rule."""
        waiting, seen = list(sources), set()
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            if node.parameters and self.tabled(index):
                yield index
            elif node.op == "bias" or not (node.parameters or node.quantized):
                waiting.extend(self.before.get(index, ()))

    def _biases(self, index: int) -> list[int]:
        nodes = enumerate(self.nodes)
        return [i for i, n in nodes if n.op == "bias" and index in self.before.get(i, ())]


def _scores(node: Node, classes: int) -> bool:
    """Whether a node gives a number to each class."""
    if not node.parameters or node.op not in _SCORING:
        return False
    shape = node.parameters[0].shape
    return classes in shape if node.op == "matmul" else classes == shape[0]


def _passes(node: Node, classes: int) -> bool:
    """Whether the scores of each class go through a node by themselves; activations end that."""
    if not node.parameters:
        return not node.quantized and node.op not in _ACTIVATIONS
    return node.op in _BY_CHANNEL and _sizes(node) <= {1, classes}


def _rescales(node: Node) -> bool:
    """Whether each channel has numbers of its own to be multiplied with."""
    return node.op not in ("bias", "sum") and _sizes(node) != {1}


def _sizes(node: Node) -> set[int]:
    return {math.prod(parameter.shape) for parameter in node.parameters}
