"""Batch norms that follow no layer: float, or convolutions between integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.export.integer_nodes import (
    ACTIVATIONS,
    MOVES,
    UNEVEN,
    Given,
    data_inputs,
    has_statistics,
    integer_nodes,
    width,
)
from ghnqat_sdk.export.observe import observed_ranges
from ghnqat_sdk.export.onnx_graph import Graph, norm_factor

CONVOLUTION = "batch_norm_"
"""How the names of norms begin that are convolutions: these are no layers of the model."""

_KEEPING_SIZE = ACTIVATIONS | MOVES | {"Add", "AveragePool", "GlobalAveragePool"}
"""Operations that hand on what rounding does to their inputs as large as it is."""


def norms_in_float(
    graph: Graph, given: Given, inputs: Sequence[Tensor], float_edges: Sequence[str]
) -> set[str]:
    """Norms of values of two dimensions, or that no integers make.

    A norm makes the channels of one value alike. On levels for all channels a narrow one has few,
    and the norm would magnify what rounding does to it: such values, and those that they are put
    together of, stay float, as `given` is told, and the norm with them.
    """
    integer, makers, ranks = integer_nodes(graph, given, float_edges), graph.makers(), graph.ranks()
    norms = [node for node in graph.nodes if has_statistics(graph, node)]
    parts = {norm.output[0]: _parts(graph, makers, norm.input[0]) for norm in norms}
    seen = observed_ranges(given.before, inputs, sorted(set().union(parts, *parts.values())))
    in_float: set[str] = set()
    for norm in norms:
        value, output = norm.input[0], norm.output[0]
        factor = norm_factor(graph, norm)[0].abs().max().item()
        widest = UNEVEN * width(seen[output])
        given.kept |= {name for name in parts[output] if factor * width(seen[name]) > widest}
        made = value in makers and makers[value].output[0] in integer
        if not made or ranks.get(value, 0) < 3:
            in_float.add(output)
    return in_float


def _parts(graph: Graph, makers: dict[str, Any], value: str) -> set[str]:
    """A value and those of which it is made by moving, clipping and adding."""
    found, waiting = {value}, [value]
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker.op_type in _KEEPING_SIZE:
            new = {*data_inputs(maker)} - found - set(graph.constants)
            found |= new
            waiting += new
    return found


def norms_as_convolutions(graph: Graph, integer: set[str]) -> None:
    """Batch norms between integers as convolutions with one weight for each channel, whose scale is
    the factor."""
    from onnx import helper

    ranks = graph.ranks()
    nodes: list[Any] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "BatchNormalization" or node.output[0] not in integer:
            continue
        factor, shift = norm_factor(graph, node)
        output, space = node.output[0], [1] * (ranks[node.input[0]] - 2)
        weight = f"{output}.weight"
        scale = factor.abs() / 127
        usable = scale >= torch.finfo(torch.float32).tiny
        levels = (127 * factor.sign() * usable).to(torch.int16).view(-1, 1, *space)
        stored = [
            graph.write(f"{weight}.levels", levels),
            graph.write(f"{weight}.scale", torch.where(usable, scale, 1.0).float()),
        ]
        bias = graph.write(f"{output}.bias", shift.float())
        inputs, groups = [node.input[0], weight, bias], len(factor)
        nodes[-1:] = [
            helper.make_node("DequantizeLinear", stored, [weight], axis=0),
            helper.make_node(
                "Conv", inputs, [output], f"{CONVOLUTION}{output}", group=groups, kernel_shape=space
            ),
        ]
    graph.nodes = nodes
