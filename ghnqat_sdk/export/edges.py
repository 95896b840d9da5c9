"""Which values of a graph are 8-bit integers at run time, and the range of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.integer_nodes import (
    ACTIVATIONS,
    MOVES,
    UNIT,
    Given,
    data_inputs,
    integer_nodes,
    is_kept,
    uneven_joins,
)
from ghnqat_sdk.export.norms import norms_in_float
from ghnqat_sdk.export.observe import Range, observed_ranges
from ghnqat_sdk.export.onnx_graph import Graph, attributes

_NEARLY = 1 + 1e-6  # a scale in float32 need not give back the end of its range


@dataclass
class Edges:
    """Values that become integers.

    Attributes:
        ranges: Value to range; values of one group have the same.
        own: Output of what reads a value that is float, or wider for others, to the range with
            which it does.
        nodes: Outputs of the operations that read and give integers.
        dropped: Output of an activation to its input: saturation does its work.
    """

    ranges: dict[str, Range]
    own: dict[str, Range]
    nodes: set[str]
    dropped: dict[str, str]


def plan_edges(
    graph: Graph, given: Given, inputs: Sequence[Tensor], float_edges: Sequence[str]
) -> Edges:
    """Choose the values that become integers, run the graph on the inputs, and give each value a
    range.

    Layers say with which range they read a value. Sums, products and the like, which training
    leaves in float, get the smallest and the largest value on the inputs; a layer that clips what
    these read in full does so for itself.

    Raises:
        ArgumentError: a pattern in `float_edges` that no value has.
    """
    _require_known(graph, given, float_edges)
    in_float = norms_in_float(graph, given, inputs, float_edges)
    in_float |= uneven_joins(graph, given, inputs, float_edges)
    integer = integer_nodes(graph, given, float_edges, in_float)
    edges = _edges_of(graph, integer, given, float_edges)
    activations = {n.output[0]: n for n in graph.nodes if n.op_type in ACTIVATIONS}
    before = {n.input[0] for name, n in activations.items() if name in edges}
    seen = observed_ranges(given.before, inputs, sorted(edges | before))
    groups = _groups(graph, edges, integer)
    ranges: dict[str, Range] = {}
    for group in groups:
        ranges |= dict.fromkeys(group, _range_of(graph, group, given, seen, integer))
    dropped = _dropped(graph, ranges, activations)
    for name, node in activations.items():
        maker = graph.makers().get(node.input[0])
        made_of_integers = maker is not None and maker.output[0] in integer
        if name in ranges and name not in dropped and made_of_integers:
            ranges.setdefault(node.input[0], seen[node.input[0]])
    own = {
        node.output[0]: given.ranges[node.output[0]]
        for node in graph.nodes
        if node.output[0] in given.ranges and node.op_type != "QuantizeLinear"
        if _needs_own(given.ranges[node.output[0]], node.input[0], ranges, seen)
    }
    return Edges(ranges, own, integer, dropped)


def _needs_own(own: Range, name: str, ranges: dict[str, Range], seen: dict[str, Range]) -> bool:
    """Whether a layer's range clips a value by a level that the range of this value has."""
    if name not in ranges:
        return True
    low, high = ranges[name]
    half = (high - low) / 255 / 2
    return max(low, seen[name][0]) < own[0] - half or min(high, seen[name][1]) > own[1] + half


def _require_known(graph: Graph, given: Given, float_edges: Sequence[str]) -> None:
    known = _edges_of(graph, integer_nodes(graph, given, ()), given, ())
    order = [*graph.inputs, *graph.makers()]
    for pattern in float_edges:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ArgumentError(
                f"float_edges has {pattern!r}, and no value that runs in integers has such a name. "
                f"These do: {', '.join(name for name in order if name in known)}."
            )


def _edges_of(
    graph: Graph, integer: set[str], given: Given, float_edges: Sequence[str]
) -> set[str]:
    """Values that integer operations read or give; the scores of a last linear layer stay float."""
    edges: set[str] = set()
    readers = graph.readers()
    for node in graph.nodes:
        if node.output[0] not in integer:
            continue
        reads = data_inputs(node)
        edges.update(reads[:1] if node.op_type in ACTIVATIONS else reads)
        scores = node.op_type == "Gemm" and node.output[0] in graph.outputs
        if not scores and node.op_type != "MatMul":  # runtimes give its float result at once
            edges.update(node.output)
    edges = {name for name in edges if not is_kept(name, given, float_edges)}
    makers = graph.makers()
    for name in list(edges):
        # What only an activation reads is no value of its own: the layer gives the activation's
        # output.
        after = readers.get(name, [])
        alone = len(after) == 1 and after[0].op_type in ACTIVATIONS and name not in graph.outputs
        maker = makers.get(name)
        if (
            alone
            and maker is not None
            and maker.op_type not in MOVES
            and after[0].output[0] in edges
        ):
            edges.discard(name)
    return edges


def _groups(graph: Graph, edges: set[str], integer: set[str]) -> list[list[str]]:
    """The values that share one range, because what lies between them computes nothing."""
    parent = {name: name for name in sorted(edges)}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.op_type in MOVES and node.output[0] in integer:
            through: list[str] = [*data_inputs(node), *node.output]
            first, others = through[0], through[1:]
            for other in others:
                parent[root(other)] = root(first)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def _range_of(
    graph: Graph, group: list[str], given: Given, seen: dict[str, Range], integer: set[str]
) -> Range:
    """What the readers of a group need, at least 0 and not below what an activation lets
    through."""
    makers, readers = graph.makers(), graph.readers()
    if all(name in makers and makers[name].op_type in UNIT for name in group):
        return 0.0, 1.0
    needed: list[Range] = []
    for name in group:
        after = {node.output[0]: node for node in readers.get(name, [])}
        own = [given.ranges[output] for output in after if output in given.ranges]
        moves = {n for n, node in after.items() if node.op_type in MOVES and n in integer}
        in_float = [node for n, node in after.items() if n not in moves and n not in given.ranges]
        needed += own
        if in_float or not after or name in graph.outputs:
            needed.append(_useful(seen[name], in_float))
    low, high = min(low for low, _ in needed), max(high for _, high in needed)
    moved = {name for name in group if name in integer and makers[name].op_type in MOVES}
    made = [makers.get(name) for name in group if name not in moved]
    never_negative = all(node is not None and _is_never_negative(graph, node) for node in made)
    return (0.0 if never_negative else min(low, 0.0)), max(high, 0.0)


def _is_never_negative(graph: Graph, node: Any) -> bool:
    """Whether an activation gives nothing below 0, whatever the images."""
    return node.op_type in UNIT or (node.op_type in ACTIVATIONS and _bounds(graph, node)[0] >= 0)


def _bounds(graph: Graph, node: Any) -> Range:
    """What a ReLU or a Clip lets through; NaN for an end that no constant says."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    ends = {1: -math.inf, 2: math.inf}
    for place, name in enumerate(node.input):
        if place and name:
            ends[place] = graph.read(name).item() if name in graph.constants else math.nan
    return ends[1], ends[2]


def _useful(range_: Range, readers: list[Any]) -> Range:
    """The part of a range beyond which hard gates, and products with them, do not change."""
    gates = [node for node in readers if node.op_type == "HardSigmoid"]
    if len(gates) != 1:
        return range_
    settings = {"alpha": 0.2, "beta": 0.5} | attributes(gates[0])
    closed, open_ = (
        -settings["beta"] / settings["alpha"],
        (1 - settings["beta"]) / settings["alpha"],
    )
    products = [node for node in readers if node not in gates]
    gate = gates[0].output[0]
    if any(n.op_type != "Mul" or gate not in n.input for n in products):
        return range_
    return max(range_[0], closed), range_[1] if products else min(range_[1], open_)


def _dropped(graph: Graph, ranges: dict[str, Range], activations: dict[str, Any]) -> dict[str, str]:
    """Activations that the saturation of their output's range does as well."""
    dropped = {}
    for name, node in activations.items():
        if name not in ranges or node.input[0] in ranges:
            continue
        low, high = ranges[name]
        bounds = _bounds(graph, node)
        if bounds[0] <= low and high <= bounds[1] * _NEARLY:
            dropped[name] = node.input[0]
    return dropped
