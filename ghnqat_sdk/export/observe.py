"""The ranges of a graph's values on images, seen in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghnqat_sdk.export.onnx_graph import Graph
from ghnqat_sdk.export.runtime import runner

Range = tuple[float, float]
"""Smallest and largest number."""

_ROWS = 16


def observed_ranges(
    graph: Graph, inputs: Sequence[Tensor], names: Sequence[str]
) -> dict[str, Range]:
    """Smallest and largest number of each value on the inputs, in ONNX Runtime."""
    if not names:
        return {}
    from onnx import ModelProto, TensorProto, helper

    model = ModelProto()
    graph.store()
    model.CopyFrom(graph.model)
    extremes = []
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            extremes.append(f"{name}/{op}")
            model.graph.node.append(helper.make_node(op, [name], extremes[-1:], keepdims=0))
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in extremes]
    model.graph.ClearField("output")
    model.graph.output.extend(kinds)
    run = runner(model)
    found = torch.stack([torch.stack(run(chunk)) for chunk in _chunks(graph, inputs)])
    low, high = found[:, 0::2].amin(0).tolist(), found[:, 1::2].amax(0).tolist()
    return dict(zip(names, zip(low, high, strict=True), strict=True))


def _chunks(graph: Graph, inputs: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Some rows of the inputs at a time, so that the values between layers fit into memory; all of
    them where the graph is of one batch size."""
    rows = [x.split(_ROWS) if len(x) == len(inputs[0]) else [x] for x in inputs]
    if "batch" not in graph.dynamic() or len({len(each) for each in rows}) > 1:
        return [tuple(inputs)]
    return list(zip(*rows, strict=True))
