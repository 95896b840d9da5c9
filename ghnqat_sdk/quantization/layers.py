"""Fake-quantized layers, one class for each of torch's, and what finds them in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import BY_FUNCTION, BY_NAME
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.state import QuantizationState


class FakeQuantizedLayer:
    """What the fake-quantized layers share: their two quantizers and the model's state."""

    op: ClassVar[str]
    """Row of `graph.ops`."""
    weight: Tensor
    bias: Any
    training: bool
    input_quantizer: FakeQuantizer
    weight_quantizer: FakeQuantizer
    quantization: QuantizationState

    def quantized(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The input and the weight (the layer's, or what it makes of it), both fake-quantized."""
        if not self.training and self.input_quantizer.bits != FLOAT_BITS:
            self.quantization.check_calibrated()
        weight = self.weight if weight is None else weight
        return self.input_quantizer(x), self.weight_quantizer(weight)

    def macs(self, input: Tensor, output: Tensor) -> int:
        """Multiply-accumulates of one call."""
        count = BY_NAME[type(self).op].macs
        assert count is not None
        return count(tuple(input.shape), tuple(self.weight.shape), tuple(output.shape))


class _FakeQuantizedConv(FakeQuantizedLayer):
    op = "conv"
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        x, weight = FakeQuantizedLayer.quantized(self, input)
        return self._conv_forward(x, weight, self.bias)


class FakeQuantizedConv1d(_FakeQuantizedConv, nn.Conv1d):
    """`nn.Conv1d` whose weight and input are fake-quantized."""


class FakeQuantizedConv2d(_FakeQuantizedConv, nn.Conv2d):
    """`nn.Conv2d` whose weight and input are fake-quantized."""


class FakeQuantizedConv3d(_FakeQuantizedConv, nn.Conv3d):
    """`nn.Conv3d` whose weight and input are fake-quantized."""


class FakeQuantizedLinear(FakeQuantizedLayer, nn.Linear):
    """`nn.Linear` whose weight and input are fake-quantized."""

    op = "linear"

    def forward(self, input: Tensor) -> Tensor:
        """(..., features in) to (..., features out)."""
        x, weight = FakeQuantizedLayer.quantized(self, input)
        return F.linear(x, weight, self.bias)


class _FakeQuantizedConvTranspose(FakeQuantizedLayer):
    op = "transposed_conv"
    functional: Callable[..., Tensor]
    spatial_dims: int

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, weight = FakeQuantizedLayer.quantized(self, input)
        padding = self._output_padding(
            x,
            output_size,
            self.stride,
            self.padding,
            self.kernel_size,
            self.spatial_dims,
            self.dilation,
        )
        return type(self).functional(
            x, weight, self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )


class FakeQuantizedConvTranspose1d(_FakeQuantizedConvTranspose, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` whose weight and input are fake-quantized."""

    functional, spatial_dims = staticmethod(F.conv_transpose1d), 1


class FakeQuantizedConvTranspose2d(_FakeQuantizedConvTranspose, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` whose weight and input are fake-quantized."""

    functional, spatial_dims = staticmethod(F.conv_transpose2d), 2


class FakeQuantizedConvTranspose3d(_FakeQuantizedConvTranspose, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` whose weight and input are fake-quantized."""

    functional, spatial_dims = staticmethod(F.conv_transpose3d), 3


class _Operands(TorchFunctionMode):
    """Fake-quantizes what enters a quantized op while a layer's own forward runs."""

    def __init__(self, layer: FakeQuantizedLayer) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        op = BY_FUNCTION.get(function)
        if op is not None and op.quantized:
            operands = dict(zip(("input", "weight"), args, strict=False))
            for name in ("input", "weight"):
                operands.setdefault(name, kwargs.pop(name, None))
            x, weight = FakeQuantizedLayer.quantized(
                self.layer, operands["input"], operands["weight"]
            )
            return function(x, weight, *args[2:], **kwargs)
        return function(*args, **kwargs)


class OwnForward(FakeQuantizedLayer):
    """A layer of a class with a forward of its own: what it hands to the op is fake-quantized."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Operands(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def fake_quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The fake-quantized convolutions and linear layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizedLayer)}


def require_fake_quantized_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `fake_quantized_layers`, of a model that has some.

    Raises:
        ArgumentError: `qmodel` is no fake-quantized model; the message names `caller`, the
            function that needs one.
    """
    layers = fake_quantized_layers(qmodel) if isinstance(qmodel, nn.Module) else {}
    if not layers:
        raise ArgumentError(
            f"{caller} needs a model from predict_quantized_params; this {type(qmodel).__name__} "
            f"has no fake-quantized layer. Write qmodel = predict_quantized_params(model) first."
        )
    return layers


def require_calibrated_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `require_fake_quantized_layers`, of a model that is calibrated in all its parts."""
    layers = require_fake_quantized_layers(qmodel, caller)
    missing = [name for name, layer in layers.items() if not layer.quantization.calibrated]
    if missing:
        what = f"{missing[0]!r} is not" if len(missing) < len(layers) else "it is not"
        raise ArgumentError(
            f"{caller} needs a calibrated model, and of this {type(qmodel).__name__} {what}. Write "
            f"calibrate(qmodel, batches) first."
        )
    return layers


def fixed_input_range(name: str, layer: Any) -> tuple[float, float]:
    """(low, high) of a calibrated layer's input, of a learned step as well.

    Raises:
        ArgumentError: no image reached the layer while calibrating.
    """
    quantizer = layer.input_quantizer
    if quantizer.frozen_range is None and not isinstance(quantizer, LearnedStepQuantizer):
        raise ArgumentError(
            f"The input of {name!r} has no range: no image reached it while calibrating. Calibrate "
            f"with images that do, or predict with bits={{{name!r}: (4, 32), '*': (4, 4)}}."
        )
    low, high = quantizer.range_of(layer.weight)  # the same for every tensor
    return low, high


@contextmanager
def layer_at(layer: Any, weight: int, activation: int) -> Iterator[None]:
    """One fake-quantized layer at other bits."""
    before = layer.weight_quantizer.bits, layer.input_quantizer.bits
    layer.weight_quantizer.bits, layer.input_quantizer.bits = weight, activation
    try:
        yield
    finally:
        layer.weight_quantizer.bits, layer.input_quantizer.bits = before


@contextmanager
def all_in_float(layers: dict[str, Any]) -> Iterator[None]:
    """No layer quantized."""
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer_at(layer, FLOAT_BITS, FLOAT_BITS))
        yield
