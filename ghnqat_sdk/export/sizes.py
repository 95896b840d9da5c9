"""Whether an exported graph gives the model's outputs at other sizes than those of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

_SCALES = ((1.0, 1.0), (0.5, 0.5), (1.5, 1.5), (2.0, 1.0), (1.0, 2.0))
"""Of height and width; networks that halve images several times take but some of them."""
_ROWS = 3
_DIFFERENT = 1e-6
"""Relative error of outputs that are not rounded: those of one kernel lie far below."""
_USUAL = 2
"""torch never promises less than two rows or pixels."""


@dataclass(frozen=True)
class _Case:
    """Inputs of another size, and the model's outputs for them.

    Attributes:
        varied: Dimensions in which they are of another size than the batch.
    """

    varied: frozenset[int]
    values: list[Tensor]
    expected: list[Tensor]


class Probes:
    """Images of other sizes than those of the batch, and what the model makes of them, inputs
    unrounded.

    Attributes:
        dimensions: Those of images (N, C, H, W) in which the model takes other sizes.
    """

    def __init__(self, bare: nn.Module, inputs: Any) -> None:
        self._model = copy.deepcopy(bare)
        for layer in fake_quantized_layers(self._model).values():
            layer.input_quantizer.bits = FLOAT_BITS
        self._call = Call.of(inputs)
        rows = _ROWS + (len(self._call.tensors()[0]) == _ROWS)
        changes = [partial(other_size, rows=rows, scales=scales) for scales in _SCALES]
        self._cases = [case for change in changes if (case := self._case(change))]
        self.dimensions = frozenset[int]().union(*(case.varied for case in self._cases))

    def holds(self, proto: Any, dimensions: tuple[int, ...], lowest: Mapping[int, int]) -> bool:
        """Whether a ModelProto in which these dimensions vary gives the outputs of the model
        wherever the model takes such images.

        `lowest` are the least sizes of dimensions that torch knows the graph to be right for: below
        them the model takes nothing, or another way.
        """
        below = {place: size - 1 for place, size in lowest.items() if size > _USUAL}
        changes = [partial(_resized, place=place, size=size) for place, size in below.items()]
        cases = [*self._cases, *filter(None, map(self._case, changes))]
        graph = Graph(copy.deepcopy(proto))
        separate_constants(graph)
        run = runner(float_twin(graph))
        return all(_same(run, case) for case in cases if case.varied <= set(dimensions))

    def _case(self, change: Callable[[Tensor], Tensor]) -> _Case | None:
        """None where the model does not take inputs that are changed so."""
        call = self._call.map(change)
        try:
            with evaluating(self._model), torch.no_grad():
                expected = outputs_on(self._model, call)
        except Exception:  # whatever a model says of a size
            return None
        values = call.tensors()
        pairs = zip(self._call.tensors(), values, strict=True)
        varied = {
            place for x, y in pairs for place in range(x.ndim) if x.shape[place] != y.shape[place]
        }
        return _Case(frozenset(varied), values, expected)


def _same(run: Callable[..., list[Tensor]], case: _Case) -> bool:
    try:
        return Agreement.of(run(case.values), case.expected).relative_error <= _DIFFERENT
    except ExportError:  # another shape, or one that the runtime refuses
        return False


def other_size(x: Tensor, rows: int, scales: tuple[float, float]) -> Tensor:
    """An input with so many rows and, where it is of images, of another height and width."""
    x = x.repeat(-(-rows // len(x)), *[1] * (x.ndim - 1))[:rows]
    if not _is_of_images(x):
        return x
    height, width = (max(1, round(s * k)) for s, k in zip(x.shape[2:], scales, strict=True))
    return F.interpolate(x, size=(height, width), mode="nearest")


def _resized(x: Tensor, place: int, size: int) -> Tensor:
    """An input of another size in one dimension."""
    if place == 0:
        return other_size(x, size, (1.0, 1.0))
    if not _is_of_images(x):
        return x
    height, width = x.shape[2:]
    return F.interpolate(x, size=(size, width) if place == 2 else (height, size), mode="nearest")


def _is_of_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point()
