"""The form of a graph that ONNX Runtime runs in integers: QDQ around every operation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ghnqat_sdk.export.edges import Edges
from ghnqat_sdk.export.integer_nodes import LAYERS
from ghnqat_sdk.export.norms import CONVOLUTION
from ghnqat_sdk.export.observe import Range
from ghnqat_sdk.export.onnx_graph import Graph, attributes
from ghnqat_sdk.export.report import Roundings
from ghnqat_sdk.export.weights import to_signed_bytes
from ghnqat_sdk.quantization.functional import scale_and_zero_point

_BIAS_LEVELS = 2**30
"""Largest integer of a bias: sums of products must find room beside it in 32 bits."""


def expand(graph: Graph) -> None:
    """Write operations without an integer form as such that have one: global means, and hard swish
    as a product."""
    from onnx import helper

    nodes: list[Any] = []
    for node in graph.nodes:
        nodes.append(node)
        if _is_global_mean(graph, node):
            nodes[-1:] = _global_mean(graph, node)
        elif node.op_type == "HardSwish":
            gate = f"{node.output[0]}.gate"
            inputs, output = [node.input[0]], node.output[0]
            alpha = helper.make_node("HardSigmoid", inputs, [gate], alpha=1 / 6, beta=0.5)
            nodes[-1:] = [alpha, helper.make_node("Mul", [*inputs, gate], [output])]
            graph.declare(gate)
    graph.nodes = nodes


def _is_global_mean(graph: Graph, node: Any) -> bool:
    """Whether a node is the mean over the height and width of images (N, C, H, W)."""
    if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in graph.constants:
        return False
    axes = sorted(graph.read(node.input[1]).tolist())
    return axes in ([-2, -1], [2, 3]) and graph.ranks().get(node.input[0]) == 4


def _global_mean(graph: Graph, node: Any) -> list[Any]:
    """The mean as a pooling, and as (N, C) where it drops the dimensions of one."""
    from onnx import helper

    if attributes(node).get("keepdims", 1):
        return [helper.make_node("GlobalAveragePool", node.input[:1], node.output)]
    mean = f"{node.output[0]}.pooled"
    graph.declare(mean)
    return [
        helper.make_node("GlobalAveragePool", node.input[:1], [mean]),
        helper.make_node("Flatten", [mean], node.output, axis=1),
    ]


class Affine(NamedTuple):
    """Names of the scale and zero point of a value."""

    scale: str
    zero_point: str


def quantize_edges(graph: Graph, edges: Edges) -> None:
    """Put QuantizeLinear and DequantizeLinear after whatever makes an edge, and before what reads
    with a range of its own; activations that these replace go."""
    affines = _affines(graph, edges)
    source = {before: after for after, before in edges.dropped.items()}
    nodes: list[Any] = []
    for name in graph.inputs:
        if name in edges.ranges:
            nodes += _pair(name, f"{name}.quantized", affines[edges.ranges[name]])
    taken = {name: f"{name}.quantized" for name in graph.inputs if name in edges.ranges}
    for node in graph.nodes:
        if node.output[0] in edges.dropped:
            continue
        if node.output[0] in edges.own:
            nodes += _own_input(graph, node, edges, affines)
        for place, name in enumerate(node.input):
            node.input[place] = taken.get(name, name)
        if node.op_type == "HardSigmoid" and node.output[0] in edges.nodes:
            nodes += _hard_gate(graph, node)
            continue
        nodes.append(node)
        for place, made in enumerate(node.output):
            name = source.get(made, made)
            if name in edges.ranges:
                node.output[place] = f"{name}.float"
                nodes += _pair(node.output[place], name, affines[edges.ranges[name]])
    graph.nodes = nodes


def _own_input(graph: Graph, node: Any, edges: Edges, affines: dict[Range, Affine]) -> list[Any]:
    """What clips the first input for `node` alone.

    A kernel that gives integers gives them with one range: their levels get a Clip. Images and what
    stays float are put on levels of the reader's own.
    """
    from onnx import helper

    name, range_, own = node.input[0], edges.own[node.output[0]], f"{node.output[0]}.input"
    node.input[0] = own
    if name not in edges.ranges or name in graph.inputs:
        return _pair(name, own, affines[range_])
    scale, zero_point = scale_and_zero_point(*edges.ranges[name], 8)
    levels = (torch.tensor(range_) / scale + zero_point).round().clamp(0, 255)
    ends = [_byte(graph, int(level)) for level in levels]
    return [
        helper.make_node("Clip", [f"{name}.levels", *ends], [f"{own}.levels"]),
        helper.make_node(
            "DequantizeLinear", [f"{own}.levels", *affines[edges.ranges[name]]], [own]
        ),
    ]


def _affines(graph: Graph, edges: Edges) -> dict[Range, Affine]:
    """Constants for each range."""
    known: dict[Range, Affine] = {}
    for range_ in (*edges.ranges.values(), *edges.own.values()):
        if range_ not in known:
            scale, zero_point = scale_and_zero_point(*range_, 8)
            name = graph.write(f"scale.{len(known)}", scale)
            known[range_] = Affine(name, _byte(graph, int(zero_point)))
    return known


def _byte(graph: Graph, value: int) -> str:
    return graph.write(f"byte.{value}", torch.tensor(value, dtype=torch.uint8))


def _pair(source: str, target: str, affine: Affine) -> list[Any]:
    """The nodes that put `source` on levels and back, as `target`."""
    from onnx import helper

    levels = f"{target}.levels"
    return [
        helper.make_node("QuantizeLinear", [source, *affine], [levels]),
        helper.make_node("DequantizeLinear", [levels, *affine], [target]),
    ]


def _hard_gate(graph: Graph, node: Any) -> list[Any]:
    """max(0, min(1, α x + β)) as x + β / α on the levels of 0 … 1 / α, whose ends clip it, read as
    0 … 1."""
    from onnx import helper

    settings = {"alpha": 0.2, "beta": 0.5} | attributes(node)
    alpha, shift = settings["alpha"], settings["beta"] / settings["alpha"]
    zero, top, output = _byte(graph, 0), _byte(graph, 255), node.output[0]
    step = graph.write(f"gate.step.{alpha:.6g}", torch.tensor(1 / alpha / 255))
    shift_step = graph.write(f"gate.shift.{shift:.6g}", torch.tensor(shift / 255))
    unit = graph.write("gate.unit", torch.tensor(1 / 255))
    parts = [f"{output}.{part}" for part in ("shift", "shifted", "levels")]
    return [
        helper.make_node("DequantizeLinear", [top, shift_step, zero], [parts[0]]),
        helper.make_node("Add", [node.input[0], parts[0]], [parts[1]]),
        helper.make_node("QuantizeLinear", [parts[1], step, zero], [parts[2]]),
        helper.make_node("DequantizeLinear", [parts[2], unit, zero], [output]),
    ]


def finish_layers(graph: Graph, coarse: set[str]) -> Roundings:
    """Weights as signed bytes, and biases as 32-bit integers in layers that compute in integers,
    apart in others, as in those that read values of fewer bits, `coarse`; returns what the weights'
    roundings cost."""
    makers, roundings, nodes = graph.makers(), Roundings(), []
    rooms = _rooms(graph, makers, coarse)
    finished: set[str] = set()
    for node in graph.nodes:
        weight = graph.stored_weight(node, makers)
        if weight is None:
            nodes += _held_in_float(graph, node) if _reads_levels(graph, node, makers) else [node]
            continue
        step, bias = _step_of_input(graph, node, makers, coarse), _stored_bias(graph, node)
        if weight.output[0] not in finished:
            cost = Roundings() if node.name.startswith(CONVOLUTION) else roundings
            to_signed_bytes(graph, weight, rooms[weight.output[0]], cost)
            finished.add(weight.output[0])
        if step is None:
            apart = bias is not None and node.op_type in LAYERS
            nodes += _with_bias_apart(graph, node, weight.input[0]) if apart else [node]
        else:
            nodes += _with_integer_bias(graph, node, weight, step) if bias else [node]
    graph.nodes = nodes
    return roundings


def _stored_bias(graph: Graph, node: Any) -> str | None:
    return node.input[2] if len(node.input) > 2 and node.input[2] in graph.constants else None


def _rooms(graph: Graph, makers: dict[str, Any], coarse: set[str]) -> dict[str, torch.Tensor]:
    """The smallest scales of each stored weight with which the biases of all layers that read it
    are integers of 32 bits."""
    rooms: dict[str, torch.Tensor] = {}
    for node in graph.nodes:
        weight = graph.stored_weight(node, makers)
        if weight is None:
            continue
        step, bias = _step_of_input(graph, node, makers, coarse), _stored_bias(graph, node)
        least = graph.read(bias).abs() / (step * _BIAS_LEVELS) if bias and step else torch.zeros(())
        name = weight.output[0]
        rooms[name] = torch.maximum(rooms.get(name, least), least)
    return rooms


def _reads_levels(graph: Graph, node: Any, makers: dict[str, Any]) -> bool:
    """Whether a layer's input is on levels, and its weight is float."""
    if node.op_type not in ("Conv", "Gemm") or node.input[1] not in graph.constants:
        return False
    reads = makers.get(node.input[0])
    return reads is not None and reads.op_type == "DequantizeLinear"


def _held_in_float(graph: Graph, node: Any) -> list[Any]:
    """A layer with a maximum behind it that changes nothing: between two levels a runtime puts a
    float weight on levels as well."""
    from onnx import helper

    output = node.output[0]
    lowest = graph.write("lowest.float", torch.tensor(torch.finfo(torch.float32).min))
    node.output[0] = f"{output}.in_float"
    return [node, helper.make_node("Max", [node.output[0], lowest], [output])]


def _step_of_input(
    graph: Graph, node: Any, makers: dict[str, Any], coarse: set[str]
) -> float | None:
    """The scale of the levels that a layer reads, if it computes in integers."""
    reads = makers.get(node.input[0])
    if node.op_type not in LAYERS or reads is None or reads.op_type != "DequantizeLinear":
        return None
    if reads.input[0] in graph.constants or node.input[0] in coarse:
        return None
    return graph.read(reads.input[1]).item()


def _with_integer_bias(graph: Graph, node: Any, weight: Any, step: float) -> list[Any]:
    """A layer whose bias is in multiples of (scale of the input) · (scale of the weight), and of no
    other layer that reads the same one from other levels."""
    from onnx import helper

    bias, own = node.input[2], f"{node.output[0]}.bias"
    scale = graph.read(weight.input[1]).double() * step
    levels = (graph.read(bias).double() / scale).round().to(torch.int32)
    stored = [
        graph.write(f"{own}.levels", levels),
        graph.write(f"{own}.scale", scale.float()),
    ]
    node.input[2] = f"{own}.dequantized"
    return [helper.make_node("DequantizeLinear", stored, [node.input[2]], axis=0), node]


def _with_bias_apart(graph: Graph, node: Any, weight: str) -> list[Any]:
    """A simulated layer, whose weight is the constant `weight`, and its bias as an Add, in float.

    A runtime that computes in integers rounds a bias to multiples of (scale of the input) · (scale
    of the weight), which is coarse at few bits. Where an Add lies between a layer and the next
    levels, it does not.
    """
    from onnx import helper

    output = node.output[0]
    bias = graph.read(node.input[2]) if len(node.input) > 2 else torch.zeros(1)
    rank = len(graph.constants[weight].dims)
    name = graph.write(f"{output}.bias_apart", bias.view(1, -1, *[1] * (rank - 2)))
    del node.input[2:]
    node.output[0] = f"{output}.before_bias"
    return [node, helper.make_node("Add", [node.output[0], name], [output])]
