"""Stored weights: the way round in which they are read, and in signed bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.export.onnx_graph import Graph, attributes
from ghnqat_sdk.export.report import Roundings

_WITH_WEIGHT = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def channel_axis(weight: Any) -> int:
    """The dimension of a stored weight whose entries have a scale each, by its
    DequantizeLinear."""
    return attributes(weight).get("axis", 1)


def count_layers(graph: Graph) -> tuple[int, int]:
    """How many layers have a stored weight, and how many a float one."""
    makers, stored, in_float = graph.makers(), 0, 0
    for node in graph.nodes:
        if graph.stored_weight(node, makers) is not None:
            stored += 1
        elif node.op_type in _WITH_WEIGHT and node.input[1] in graph.constants:
            in_float += len(graph.constants[node.input[1]].dims) > 1
    return stored, in_float


def transpose_stored_weights(graph: Graph) -> None:
    """Store matrices that are read transposed the way round in which they are read; whatever reads
    one as it was keeps it.

    torch writes a linear layer on more than two dimensions as the product with a transposed matrix,
    and runtimes find no integers behind a Transpose.
    """
    makers = graph.makers()
    for place, node in enumerate(graph.nodes):
        weight = makers.get(node.input[0]) if node.op_type == "Transpose" else None
        if weight is not None and _is_stored_matrix(graph, weight):
            graph.nodes[place] = _transposed(graph, node, weight)
    graph.drop_unread()


def _is_stored_matrix(graph: Graph, node: Any) -> bool:
    levels = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    return levels is not None and len(levels.dims) == 2


def _transposed(graph: Graph, node: Any, weight: Any) -> Any:
    """A stored matrix that gives what `node`, a Transpose of `weight`, gives."""
    from onnx import helper

    output = node.output[0]
    order = attributes(node).get("perm", [1, 0])
    stored = [
        graph.write(f"{output}.levels", graph.read(weight.input[0]).permute(order)),
        graph.write(f"{output}.scale", graph.read(weight.input[1])),
    ]
    axis = order.index(channel_axis(weight))
    return helper.make_node("DequantizeLinear", stored, [output], axis=axis)


def to_signed_bytes(graph: Graph, weight: Any, room: Tensor, roundings: Roundings) -> None:
    """Levels of a stored weight in -127 … 127, with scales of at least `room`, a number for each
    channel or for all."""
    levels, scale = graph.read(weight.input[0]), graph.read(weight.input[1])
    axis = channel_axis(weight)
    by_channel = levels.movedim(axis, 0)
    rows = by_channel.flatten(1).double()
    top = rows.abs().amax(1)
    # Levels that fit stay what they are; other rows get the coarsest step that their largest level
    # needs.
    factor = torch.maximum((top / 127).clamp(min=1.0), (room / scale).double())
    rounded = (rows / factor[:, None]).round()
    error = (rounded * factor[:, None] - rows).abs().amax(1) / top.clamp(min=1)
    roundings.channels += len(rows)
    roundings.rounded += int((error > 0).sum())
    roundings.largest = max(roundings.largest, error.max().item())
    stored = rounded.view_as(by_channel).movedim(0, axis).to(torch.int8)
    graph.write(weight.input[0], stored)
    graph.write(weight.input[1], (scale * factor).float())
    if len(weight.input) < 3:
        zeros = torch.zeros(len(rows), dtype=torch.int8)
        weight.input.append(graph.write(f"{weight.output[0]}.zero_point", zeros))
