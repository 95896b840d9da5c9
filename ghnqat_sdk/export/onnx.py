"""A calibrated model as an ONNX file with integer weights, checked against ONNX Runtime."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError, CheckpointError, ExportError
from ghnqat_sdk.export.edges import plan_edges, require_known, take_out_quantizers
from ghnqat_sdk.export.integer import Roundings, expand, finish_layers, quantize_edges
from ghnqat_sdk.export.onnx_graph import (
    Graph,
    fold_batch_norms,
    rename_values,
    separate_constants,
)
from ghnqat_sdk.export.program import Inputs, require_ranges, to_onnx, with_onnx_quantizers
from ghnqat_sdk.export.runtime import integer_convolutions, milliseconds, packages, runner
from ghnqat_sdk.export.storage import pack
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.qat import fix_steps
from ghnqat_sdk.quantization.convert import to_float
from ghnqat_sdk.quantization.layers import evaluating, require_calibrated_layers
from ghnqat_sdk.quantization.report import outputs_on

Storage = Literal["int8", "int4", "int2"]
_OPSET = {"int8": 21, "int4": 21, "int2": 25}  # the first with the type in it
_DIFFERENT = 0.1  # of the output's mean square; rounding differently now and then stays far below


@dataclass(frozen=True)
class OnnxReport:
    path: Path
    size: int
    float_size: int
    largest_difference: float
    largest_output: float
    agreement: float
    images: int
    folded: int
    kept: int
    opset: int
    dynamic: tuple[str, ...]
    convolutions: int
    integer_convolutions: int
    edges: dict[str, tuple[float, float]]
    roundings: Roundings
    milliseconds: tuple[float, float] | None


def export_onnx(
    qmodel: nn.Module,
    path: str | Path,
    batch: Any,
    *,
    storage: Storage = "int8",
    float_edges: Sequence[str] = (),
    opset: int | None = None,
    timing: bool = False,
) -> OnnxReport:
    onnx, _ = packages()
    layers = require_calibrated_layers(qmodel, "export_onnx")
    inputs = batch if isinstance(batch, (dict, tuple)) else (batch,)
    values = [x.contiguous() for x in (inputs.values() if isinstance(inputs, dict) else inputs)]
    with torch.no_grad():
        expected = [t.float() for t in outputs_on(qmodel, batch)]
    bare = fix_steps(copy.deepcopy(qmodel)).cpu().eval()
    require_ranges(bare, inputs)
    opset = opset or _OPSET[storage]
    graph = Graph(to_onnx(with_onnx_quantizers(copy.deepcopy(bare)), inputs, opset))
    rename_values(graph)
    separate_constants(graph)
    before = sum(n.op_type == "BatchNormalization" for n in graph.nodes)
    fold_batch_norms(graph)
    kept = sum(n.op_type == "BatchNormalization" for n in graph.nodes)
    expand(graph)
    given = take_out_quantizers(graph)
    edges = plan_edges(graph, given, values, float_edges)
    affines = quantize_edges(graph, edges)
    roundings = finish_layers(graph)
    if storage != "int8":
        pack(graph, 2 if storage == "int2" else 4)
    graph.store()
    onnx.checker.check_model(graph.model)
    content = graph.model.SerializeToString()
    float_model = to_onnx(to_float(bare), inputs, opset).SerializeToString()
    got = runner(content)(values)
    rep = OnnxReport(Path(path), len(content), len(float_model),
        max((a - b).abs().max().item() for a, b in zip(got, expected, strict=True)),
        max(b.abs().max().item() for b in expected),
        (got[0].flatten(1).argmax(1) == expected[0].flatten(1).argmax(1)).float().mean().item(), len(values[0]), before-kept, kept, opset, (),
        sum(n.op_type == "Conv" for n in graph.nodes), integer_convolutions(content), edges.ranges, roundings, None)
    write_atomically(Path(path), content)
    return rep
