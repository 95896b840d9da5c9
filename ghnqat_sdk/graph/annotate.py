"""Bits of each layer written into the nodes of a graph, and which layers are its first and last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ghnqat_sdk.bits import Pair
from ghnqat_sdk.graph.graph import ComputationGraph, Node


def annotate_bits(
    graph: ComputationGraph, by_layer: Mapping[str, Pair], elsewhere: Pair
) -> ComputationGraph:
    """The graph with the bits of each layer in its node; the other nodes have those of the layer
    that they follow.

    Args:
        graph: The model's graph.
        by_layer: Pairs by module name.
        elsewhere: For nodes that follow no layer.
    """
    before = {target: source for source, target in sorted(graph.edges)}  # the last of its sources
    told: list[Pair] = []
    for index, node in enumerate(graph.nodes):
        follows = told[before[index]] if index in before else elsewhere
        told.append(by_layer.get(layer_of(node, by_layer), follows) if node.quantized else follows)
    pairs = {id(node): pair for node, pair in zip(graph.nodes, told, strict=True)}
    return graph.with_bits(lambda node: pairs[id(node)])


def prevailing_bits(graph: ComputationGraph, by_layer: Mapping[str, Pair]) -> Pair | None:
    """The bits that nodes before any layer are told: those of most layers between the first and the
    last, of all layers where there are none between, None without layers.

    In training all nodes of a network have the same bits. These are so where all layers have, and
    where the first and the last alone have others.
    """
    ends = first_last_layers(graph, by_layer)
    between = [pair for name, pair in by_layer.items() if name not in ends]
    counts = Counter(between or by_layer.values()).most_common(1)
    return counts[0][0] if counts else None


def first_last_layers(graph: ComputationGraph, by_layer: Mapping[str, Pair]) -> list[str]:
    """The first and the last layers on every path from an input to the output."""
    found = _reached(graph, graph.successors, "input")
    found |= _reached(graph, graph.predecessors, "output")
    return [
        name
        for index in sorted(found)
        if (name := layer_of(graph.nodes[index], by_layer)) in by_layer
    ]


def input_layers(graph: ComputationGraph, layers: Collection[str]) -> set[str]:
    """Those among `layers` that read an input of the model as it is."""
    inputs = (index for index, node in enumerate(graph.nodes) if node.op == "input")
    readers = {graph.nodes[reader] for index in inputs for reader in graph.successors[index]}
    return {layer_of(node, layers) for node in readers if node.quantized} & {*layers}


def _reached(graph: ComputationGraph, following: Sequence[Sequence[int]], start: str) -> set[int]:
    """Quantized nodes that are reached from those of type `start` before any other one.

    `following` are the neighbours of each node to go on to.
    """
    waiting, seen = [i for i, node in enumerate(graph.nodes) if node.op == start], set()
    found: set[int] = set()
    while waiting:
        for index in following[waiting.pop()]:
            if index in seen:
                continue
            seen.add(index)
            if graph.nodes[index].quantized:
                found.add(index)
            else:
                waiting.append(index)
    return found


def layer_of(node: Node, layers: Collection[str]) -> str:
    """The layer that a node runs in: its module, or one above it, as for parametrized weights."""
    name = node.module
    while name and name not in layers:
        name = name.rpartition(".")[0]
    return name
