"""A fake-quantized model as an ONNX graph: torch's exporter, with the quantizers in ONNX's own
operators."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.calls import Call
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.recorded import quiet_export, recorded_for_any
from ghnqat_sdk.export.sizes import Probes
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.lookup import fake_quantized_layers, fixed_input_range
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.quantization.state import evaluating, uncompiled

Inputs = dict[str, Tensor] | tuple[Tensor, ...]
"""Keyword arguments or positional ones."""

_DYNAMIC = ((0, 2, 3), (0,), ())
"""Dimensions of an image that may vary, tried in this order: batch, height and width."""


class _QuantizedInput(nn.Module):
    """A fake-quantized input."""

    bits = FLOAT_BITS  # as its layer sees it: nothing left to do

    def __init__(self, low: float, high: float, bits: int) -> None:
        super().__init__()
        self.clips = bits < 8
        scale, zero_point = scale_and_zero_point(low, high, bits)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))
        self.register_buffer("lowest", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("highest", torch.tensor(2**bits - 1, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        affine = (self.scale, self.zero_point)
        levels = _onnx("QuantizeLinear", (x, *affine), torch.uint8, x.shape)
        if self.clips:
            ends = (self.lowest, self.highest)
            levels = _onnx("Clip", (levels, *ends), torch.uint8, x.shape)
        return _onnx("DequantizeLinear", (levels, *affine), torch.float32, x.shape)


class _StoredWeight(nn.Module):
    """A weight as integers counted from its zero point, with a scale for each entry of its first
    dimension."""

    bits = FLOAT_BITS

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        low, high = quantizer.range_of(weight)
        scale, zero_point = scale_and_zero_point(low, high, quantizer.bits)
        levels = torch.round(weight.detach().float() * (1.0 / scale))
        levels = levels.clamp(-zero_point, 2**quantizer.bits - 1 - zero_point)
        self.register_buffer("levels", levels.to(torch.int16))
        self.register_buffer("scale", scale.flatten().expand(len(weight)).contiguous())

    def forward(self, weight: Tensor) -> Tensor:
        stored = (self.levels, self.scale)
        return _onnx("DequantizeLinear", stored, torch.float32, weight.shape, {"axis": 0})


class _Unreached(nn.Module):
    """Stands for the quantizer of a layer that no image reached while calibrating."""

    bits = 8
    follows = False  # that it has no range is told by `require_ranges`

    def __init__(self) -> None:
        super().__init__()
        self.reached = False

    def forward(self, x: Tensor) -> Tensor:
        self.reached = True
        return x


def _onnx(
    op: str,
    inputs: tuple[Any, ...],
    dtype: torch.dtype,
    shape: torch.Size,
    attributes: dict[str, Any] | None = None,
) -> Tensor:
    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=dtype, shape=shape)


def require_ranges(bare: nn.Module, inputs: Inputs) -> None:
    """Raise where an evaluation on the inputs reaches a layer without a range; changes `bare`.

    Raises:
        ArgumentError: the message names the layer.
    """
    layers = fake_quantized_layers(bare)
    missing: dict[str, _Unreached] = {}
    reasons: dict[str, ArgumentError] = {}
    for name, layer in layers.items():
        try:
            if layer.input_quantizer.bits != FLOAT_BITS:
                fixed_input_range(name, layer)
        except ArgumentError as error:
            reasons[name] = error
            layer.input_quantizer = missing[name] = _Unreached()
    if not missing:
        return
    with torch.no_grad():
        bare(**inputs) if isinstance(inputs, dict) else bare(*inputs)
    for name, stand_in in missing.items():
        if stand_in.reached:
            raise reasons[name]


def with_onnx_quantizers(bare: nn.Module, inputs: Inputs) -> nn.Module:
    """The quantizers replaced, in place.

    Raises:
        ArgumentError: a layer's forward makes its weight of its input.
    """
    weights = _weights_given(bare, inputs)
    for name, layer in fake_quantized_layers(bare).items():
        if layer.weight_quantizer.bits != FLOAT_BITS:
            weight = weights.get(name, layer.weight)
            layer.weight_quantizer = _StoredWeight(weight, layer.weight_quantizer)
        if isinstance(layer.input_quantizer, _Unreached):
            continue
        if layer.input_quantizer.bits != FLOAT_BITS:
            low, high = fixed_input_range(name, layer)
            layer.input_quantizer = _QuantizedInput(low, high, layer.input_quantizer.bits)
    return bare


@torch.no_grad()
def _weights_given(bare: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The weights that layers hand to their quantizers, by name: their own, or what a forward of
    the user's makes of it.

    Raises:
        ArgumentError: a layer hands over different ones, on the inputs and on others.
    """
    layers = fake_quantized_layers(bare)
    given: dict[str, list[Tensor]] = {name: [] for name in layers}
    with evaluating(bare), uncompiled(), ExitStack() as stack:
        for name, layer in layers.items():
            layer.weight_quantizer.observe = given[name].append
            stack.callback(setattr, layer.weight_quantizer, "observe", None)
        for call in (Call.of(inputs), Call.of(inputs).map(_other)):
            call.run(bare)
    changing = [
        name
        for name, weights in given.items()
        if layers[name].weight_quantizer.bits != FLOAT_BITS
        and not all(torch.equal(weight, weights[0]) for weight in weights)
    ]
    if changing:
        raise ArgumentError(
            f"The weight of {changing[0]!r} is not the same in every call, so no integers can be "
            "stored for it. Leave it in float: write from_float or predict_quantized_params with "
            f"bits={{{changing[0]!r}: (32, 32), '*': (4, 8)}}."
        )
    return {name: weights[0] for name, weights in given.items() if weights}


def _other(x: Tensor) -> Tensor:
    """Another input of the same shape, also where x is a single image."""
    return x / 2 if x.is_floating_point() else x


def to_onnx(model: nn.Module, inputs: Inputs, opset: int, probes: Probes) -> tuple[Any, int]:
    """A ModelProto for any batch size, and for any height and width where the model takes them; and
    how many batch norms the model has, of which torch folds those after float weights.

    torch may take a size for a constant, such as the window of an adaptive pooling: `probes` say
    whether a proto is right when such dimensions vary. A branch by size is right for some sizes
    only, as torch knows; such dimensions do not vary.

    Raises:
        ArgumentError: torch cannot export the model.
    """
    errors: list[Exception] = []
    for dimensions in _DYNAMIC:
        if not probes.dimensions.issuperset(dimensions):
            continue
        try:
            recorded, lowest = recorded_for_any(model, inputs, dimensions)
            with quiet_export(), torch.no_grad():
                program = torch.onnx.export(
                    recorded, dynamo=True, opset_version=opset, verbose=False
                )
        except Exception as error:  # whatever the exporter meets in the user's model
            errors.append(error)
            continue
        proto = program.model_proto  # type: ignore[union-attr]
        if not dimensions or probes.holds(proto, dimensions, lowest):
            return proto, _batch_norms(recorded)
    cause = errors[-1].__cause__ or errors[-1]
    reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
    raise ArgumentError(
        f"torch.export, and so torch.onnx, cannot take this {type(model).__name__}: {reason}. See "
        "to it that torch.export.export(qmodel, (images,)) works."
    ) from errors[-1]


def _batch_norms(recorded: Any) -> int:
    calls = (node for node in recorded.graph.nodes if node.op == "call_function")
    return sum("batch_norm" in str(call.target) for call in calls)
