"""Fake-quantized layers, one class for each of torch's.

Nothing constructs them: `convert.py` gives a layer of a model one of these classes in place of its
own, and puts the quantizers and the state beside its parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.graph.ops import BY_FUNCTION
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
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

    def fake_quantize_operands(
        self, x: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The input and the weight (the layer's, or what it makes of it), both fake-quantized.

        Layers call it by its class: a class of the user's may have a member of this name.
        """
        if not self.training and self.input_quantizer.bits != FLOAT_BITS:
            calibrated = self.quantization.check_calibrated()  # warns, once
            if calibrated and self.input_quantizer.follows:
                self.quantization.tell_unreached()
        weight = self.weight if weight is None else weight
        operands = self.input_quantizer(x), self.weight_quantizer(weight)
        for mode in _get_current_function_mode_stack():
            if isinstance(mode, _Operands):
                mode.quantized += 1
        return operands


class _FakeQuantizedConv(FakeQuantizedLayer):
    op = "conv"
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        x, weight = FakeQuantizedLayer.fake_quantize_operands(self, input)
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
        x, weight = FakeQuantizedLayer.fake_quantize_operands(self, input)
        return F.linear(x, weight, self.bias)


class _FakeQuantizedConvTranspose(FakeQuantizedLayer):
    op = "transposed_conv"
    functional: Callable[..., Tensor]
    spatial_dims: int

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, weight = FakeQuantizedLayer.fake_quantize_operands(self, input)
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
    """Fake-quantizes what enters a quantized op while a layer's own forward runs.

    Attributes:
        layer: Whose forward runs.
        quantized: How many of the next ops are those of layers which it calls, and which have
            quantized what enters them already.
    """

    def __init__(self, layer: FakeQuantizedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.quantized = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        op = BY_FUNCTION.get(function)
        if op is None or not op.quantized:
            return function(*args, **(kwargs or {}))
        if self.quantized:
            self.quantized -= 1
            return function(*args, **(kwargs or {}))
        given = dict(enumerate(args)) | (kwargs or {})  # by position or keyword
        slot = op.weight
        places = [
            0 if 0 in given else "input",
            slot.position if slot.position in given else slot.keyword,
        ]
        operands = [given[place] for place in places]
        quantized = FakeQuantizedLayer.fake_quantize_operands(self.layer, *operands)
        given |= dict(zip(places, quantized, strict=True))
        positional = [given.pop(position) for position in range(len(args))]
        return function(*positional, **given)


class _SeenError(Exception):
    """Ends a run in which all was seen."""


class OwnForward(FakeQuantizedLayer):
    """A layer of a class with a forward of its own: what it hands to the op is fake-quantized."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Operands(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def used_weight(layer: Any) -> Tensor:
    """The weight that a fake-quantized layer hands to its quantizer: its own, or what a forward of
    the user's makes of it, with the gradient; its own as well where that forward fails on zeros.
    """
    if not isinstance(layer, OwnForward):
        return layer.weight
    seen: list[Tensor] = []

    def see(x: Tensor) -> None:  # before any product runs
        seen.append(x)
        raise _SeenError

    quantizer = layer.weight_quantizer
    before = quantizer.observe
    quantizer.observe = see
    try:
        type(layer).forward(layer, _smallest_input(layer))
    except Exception:  # ours, or whatever the user's forward raises
        pass
    finally:
        quantizer.observe = before
    return seen[0] if seen else layer.weight


def _smallest_input(layer: Any) -> Tensor:
    """Zeros (1, C, ...) that a kernel fits into once."""
    channels = getattr(layer, "in_channels", None) or layer.in_features
    kernels = zip(getattr(layer, "kernel_size", ()), getattr(layer, "dilation", ()), strict=True)
    size = [dilation * (width - 1) + 1 for width, dilation in kernels]
    return layer.weight.new_zeros(1, channels, *size)
