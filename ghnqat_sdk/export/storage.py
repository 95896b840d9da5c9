"""Stored weights of few bits, several to a byte; a runtime makes signed bytes of them when it loads
the file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.export.onnx_graph import Graph
from ghnqat_sdk.export.report import SMALLEST, Packing
from ghnqat_sdk.export.weights import channel_axis


def pack(graph: Graph, narrowest: int) -> Packing:
    """Weights whose levels fit into 4 bits, or into 2 where `narrowest` is 2, as such, with a Cast
    to signed bytes.

    Runtimes have kernels for signed bytes. A Cast of a constant is done once, when the file is
    loaded.
    """
    packing = Packing()
    nodes: list[Any] = []
    for node in graph.nodes:
        levels = graph.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if levels is not None and levels.data_type == 3 and len(levels.dims) > 1:  # INT8
            undoing = _packed(graph, node, narrowest)
            packing.weights += 1
            packing.packed += bool(undoing)
            nodes += undoing
        nodes.append(node)
    graph.nodes = nodes
    return packing


def _packed(graph: Graph, node: Any, narrowest: int) -> list[Any]:
    """The nodes that make signed bytes of a packed weight; none where it has too many levels."""
    from onnx import TensorProto, helper

    name = node.input[0]
    if math.prod(graph.constants[name].dims) < SMALLEST:
        return []
    levels = graph.read(name).int()
    others = [each for each in range(levels.ndim) if each != channel_axis(node)]
    lowest = levels.amin(others, keepdim=True)
    width = 2 if narrowest == 2 and (levels - lowest).max() < 4 else 4
    if (levels - lowest).max() >= 2**width:
        return []
    signed = levels.min() >= -8 and levels.max() < 8 and width == 4
    kind = {True: TensorProto.INT4, False: TensorProto.UINT4}[bool(signed)]
    if width == 2:
        kind = TensorProto.UINT2
    raw = _packed_bytes((levels if signed else levels - lowest).flatten(), width)
    packed = helper.make_tensor(name, kind, levels.shape, raw, raw=True)
    graph.constants[name].CopyFrom(packed)
    node.input[0] = f"{name}.int8"
    if signed:
        return [helper.make_node("Cast", [name], [node.input[0]], to=TensorProto.INT8)]
    offset = graph.write(f"{name}.lowest", lowest.to(torch.int8))
    wide, sum_ = f"{name}.wide", f"{name}.sum"
    return [
        helper.make_node("Cast", [name], [wide], to=TensorProto.INT32),
        helper.make_node("Cast", [offset], [f"{offset}.wide"], to=TensorProto.INT32),
        helper.make_node("Add", [wide, f"{offset}.wide"], [sum_]),
        helper.make_node("Cast", [sum_], [node.input[0]], to=TensorProto.INT8),
    ]


def _packed_bytes(levels: Tensor, width: int) -> bytes:
    """Levels (N,) of `width` bits, several to a byte, the first in its lowest bits."""
    each = 8 // width
    bits = (levels & (2**width - 1)).to(torch.uint8)
    rows = torch.nn.functional.pad(bits, (0, -len(bits) % each)).view(-1, each)
    shifted = rows << torch.arange(0, 8, width, dtype=torch.uint8)
    return shifted.sum(1, dtype=torch.uint8).numpy().tobytes()
