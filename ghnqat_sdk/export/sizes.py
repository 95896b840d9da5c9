"""Whether an exported graph gives the model's outputs at other sizes than those of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.calls import Call
from ghnqat_sdk.errors import ExportError
from ghnqat_sdk.export.onnx_graph import Graph, float_twin, separate_constants
from ghnqat_sdk.export.report import Agreement
from ghnqat_sdk.export.runtime import runner
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.outputs import outputs_on
from ghnqat_sdk.quantization.state import evaluating

_SCALES = ((1.0, 1.0), (0.5, 0.5), (1.5, 1.5), (2.0, 1.0))
"""Of height and width; networks that halve images several times take but some of them."""
_ROWS = 3
_DIFFERENT = 1e-6
"""Relative error of outputs that are not rounded: those of one kernel lie far below."""


def holding(bare: nn.Module, inputs: Any) -> Callable[[Any, tuple[int, ...]], bool]:
    """A function of a ModelProto and the dimensions that vary in it: whether it gives the outputs
    of the model, inputs unrounded, wherever the model takes such images."""
    model = copy.deepcopy(bare)
    for layer in fake_quantized_layers(model).values():
        layer.input_quantizer.bits = FLOAT_BITS
    cases: list[tuple[tuple[int, ...], list[Tensor], list[Tensor]]] = []
    for scales in _SCALES:
        call = Call.of(inputs).map(partial(_other_size, scales=scales))
        try:
            with evaluating(model), torch.no_grad():
                expected = outputs_on(model, call)
        except Exception:  # the model does not take this size
            continue
        varied = (0,) if scales == (1.0, 1.0) else (0, 2, 3)
        cases.append((varied, call.tensors(), expected))

    def holds(proto: Any, dimensions: tuple[int, ...]) -> bool:
        graph = Graph(copy.deepcopy(proto))
        separate_constants(graph)
        run = runner(float_twin(graph))
        return all(
            _same(run, values, expected)
            for varied, values, expected in cases
            if set(varied) <= set(dimensions)
        )

    return holds


def _same(run: Callable[..., list[Tensor]], values: list[Tensor], expected: list[Tensor]) -> bool:
    try:
        return Agreement.of(run(values), expected).relative_error <= _DIFFERENT
    except ExportError:  # another shape, or one that the runtime refuses
        return False


def _other_size(x: Tensor, scales: tuple[float, float]) -> Tensor:
    rows = x.repeat(_ROWS, *[1] * (x.ndim - 1))[:_ROWS]
    if x.ndim != 4 or not x.is_floating_point():
        return rows
    height, width = (max(1, round(s * k)) for s, k in zip(x.shape[2:], scales, strict=True))
    return F.interpolate(rows, size=(height, width), mode="nearest")
