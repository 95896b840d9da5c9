"""Which operations of a graph can compute with 8-bit integers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from ghnqat_sdk.export.observe import Range, observed_ranges
from ghnqat_sdk.export.onnx_graph import Graph, attributes

LAYERS = {"Conv", "Gemm", "MatMul"}
ACTIVATIONS = {"Relu", "Clip"}
MOVES = {
    "Concat", "DepthToSpace", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operations that compute nothing: what they read and what they give share one range."""
ARITHMETIC = {
    "Add", "AveragePool", "BatchNormalization", "GlobalAveragePool", "HardSigmoid", "Mul",
    "Sigmoid",
}  # fmt: skip
UNIT = {"HardSigmoid", "Sigmoid"}
"""Operations whose outputs lie between 0 and 1, whatever the images."""

UNEVEN = 16
"""How many times wider than one of its parts a value may be to be on levels for all: half of the 8
bits are left for that part."""


@dataclass
class Given:
    """What a graph with layers' quantizers says of them, once they are taken out.

    Attributes:
        before: The graph with them.
        ranges: Output of what reads a value with 8 bits (a layer, its padding, a quantizer that
            stays) to the range with which it does.
        layers: Outputs of the layers that compute in integers.
        coarse: What layers read with fewer bits than 8, as their quantizers give it.
        kept: Values that stay float, as those that are read with fewer bits than 8.
    """

    before: Graph
    ranges: dict[str, Range] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    coarse: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)


def take_out_quantizers(graph: Graph) -> Given:
    """8-bit layers that have an integer form read float values again; what was taken out is
    returned."""
    graph.store()
    makers, given = graph.makers(), Given(Graph(copy.deepcopy(graph.model)))
    read: dict[str, tuple[str, Range]] = {}
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] in graph.constants:
            continue
        levels = makers[node.input[0]]
        if levels.op_type == "QuantizeLinear":
            scale, zero_point = (graph.read(name).double().item() for name in levels.input[1:3])
            range_ = -zero_point * scale, (255 - zero_point) * scale
            read[node.output[0]] = levels.input[0], range_
            given.ranges[levels.output[0]] = range_
        else:
            given.coarse.add(node.output[0])
            given.kept.add(makers[levels.input[0]].input[0])
    for node in graph.nodes:
        if node.op_type not in LAYERS or graph.stored_weight(node, makers) is None:
            continue
        pad = makers.get(node.input[0])
        # A convolution with another padding than zeros pads what it has quantized.
        reader = pad if pad is not None and _moves_by_padding(graph, pad) else node
        if reader.input[0] in read:
            given.layers.add(node.output[0])
            reader.input[0], range_ = read[reader.input[0]]
            given.ranges |= {reader.output[0]: range_, node.output[0]: range_}
    graph.drop_unread()
    return given


def _moves_by_padding(graph: Graph, node: Any) -> bool:
    """Whether a Pad adds but values that are there, or zeros, which have a level in every range."""
    if node.op_type != "Pad":
        return False
    filling = node.input[2] if len(node.input) > 2 else ""
    if attributes(node).get("mode", b"constant") != b"constant" or not filling:
        return True
    return filling in graph.constants and not graph.read(filling).any()


def is_kept(name: str, given: Given, float_edges: Sequence[str]) -> bool:
    """Whether a value stays float."""
    return name in given.kept or any(fnmatchcase(name, pattern) for pattern in float_edges)


def data_inputs(node: Any) -> list[str]:
    """Names of the values that a node computes with: no weights, shapes or indices."""
    if node.op_type in LAYERS | MOVES - {"Concat"} | {"BatchNormalization"}:
        return [node.input[0]]
    return [name for name in node.input if name]


def uneven_joins(
    graph: Graph, given: Given, inputs: Sequence[Tensor], float_edges: Sequence[str]
) -> set[str]:
    """Concatenations on whose levels one of their inputs would have few left.

    Where layers alone read the result, they read it on such levels in any case.
    """
    integer = integer_nodes(graph, given, float_edges)
    joins = {
        node.output[0]: [*node.input]
        for node in graph.nodes
        if node.op_type == "Concat" and node.output[0] in integer
        if not _read_by_layers(graph, node.output[0], given)
    }
    seen = observed_ranges(
        given.before, inputs, sorted({n for names in joins.values() for n in names})
    )

    def uneven(names: list[str]) -> bool:
        widths = [width(seen[name]) for name in names]
        return max(widths) > UNEVEN * min((w for w in widths if w > 0), default=1.0)

    return {output for output, names in joins.items() if uneven(names)}


def width(range_: Range) -> float:
    """Of a range with 0 in it, as all levels have."""
    return max(0.0, range_[1]) - min(0.0, range_[0])


def _read_by_layers(graph: Graph, name: str, given: Given) -> bool:
    """Whether 8-bit layers alone read a value, as it is or moved."""
    readers = graph.readers()
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in graph.outputs:
            return False
        for node in readers.get(name, []):
            if node.op_type in MOVES:
                waiting.extend(node.output)
            elif node.output[0] not in given.layers:
                return False
    return True


def integer_nodes(
    graph: Graph, given: Given, float_edges: Sequence[str], left_out: Collection[str] = ()
) -> set[str]:
    """Outputs of the layers, and of what lies around them and has an integer form, but for nodes
    that are left out."""
    floats = _float_values(graph)
    candidates: dict[str, Any] = {}
    for node in graph.nodes:
        output = node.output[0]
        if output in given.layers:
            candidates[output] = node
            continue
        if output in left_out or not _has_integer_form(graph, node):
            continue
        values = [*data_inputs(node), *node.output]
        if node.op_type in ACTIVATIONS:
            values = [node.input[0], output]
        plain = all(name in floats and name not in graph.outputs for name in values)
        if plain and not any(is_kept(name, given, float_edges) for name in values):
            candidates[output] = node
    return _connected(candidates, given.layers)


def _has_integer_form(graph: Graph, node: Any) -> bool:
    if node.op_type == "BatchNormalization":
        return has_statistics(graph, node)
    if node.op_type == "Pad":
        return _moves_by_padding(graph, node)
    return node.op_type in MOVES | ARITHMETIC | ACTIVATIONS


def has_statistics(graph: Graph, node: Any) -> bool:
    """Whether a node is a batch norm of fixed statistics: others are a batch's."""
    fixed = all(name in graph.constants for name in node.input[1:5])
    return node.op_type == "BatchNormalization" and fixed


def _connected(candidates: dict[str, Any], start: set[str]) -> set[str]:
    """The candidates that layers reach through others."""
    beside: dict[str, list[str]] = {}
    for output, node in candidates.items():
        values = [*data_inputs(node), *node.output]
        for name in values:
            beside.setdefault(name, []).append(output)
    reached, waiting = set(start), list(start)
    while waiting:
        node = candidates[waiting.pop()]
        for name in (*data_inputs(node), *node.output):
            new = [other for other in beside[name] if other not in reached]
            reached.update(new)
            waiting.extend(new)
    return reached


def _float_values(graph: Graph) -> set[str]:
    """Values that are float tensors and no constants."""
    proto = graph.model.graph
    infos = (*proto.input, *proto.output, *proto.value_info)
    return {each.name for each in infos if each.type.tensor_type.elem_type == 1} - set(
        graph.constants
    )
