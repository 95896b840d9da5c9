"""Batch norms that follow no layer, between integers."""

from __future__ import annotations

from typing import Any

import torch

from ghnqat_sdk.export.edges import Edges
from ghnqat_sdk.export.onnx_graph import Graph, norm_factor


def norms_as_convolutions(graph: Graph, edges: Edges) -> None:
    """Batch norms between integers as convolutions with one weight for each channel, whose scale is
    the factor."""
    from onnx import helper

    ranks = graph.ranks()
    nodes: list[Any] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op_type != "BatchNormalization" or node.output[0] not in edges.nodes:
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
            helper.make_node("Conv", inputs, [output], group=groups, kernel_shape=space),
        ]
    graph.nodes = nodes
