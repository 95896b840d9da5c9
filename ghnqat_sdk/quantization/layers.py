"""Fake-quantized layers and calibrated norms, the state that they share, and how to find them in a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS, Bits
from ghnqat_sdk.errors import ArgumentError, UncalibratedWarning
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer


@dataclass
class QuantizationState:
    """What the layers of one fake-quantized model know in common.

    Attributes:
        bits: Resolved (weight, activation) bits by module name.
        unquantized: Layers with a weight that are left in float, name to reason.
        calibrated: Whether evaluation uses stored statistics and ranges instead of those of the batch.
        frozen_norms: Whether training uses the stored statistics as well.
        warn: Whether an uncalibrated evaluation still has to be pointed out.
    """

    bits: dict[str, Bits] = field(default_factory=dict)
    unquantized: dict[str, str] = field(default_factory=dict)
    calibrated: bool = False
    frozen_norms: bool = False
    warn: bool = True

    def check_calibrated(self) -> bool:
        """Whether to use stored statistics; says once that they are missing."""
        if not self.calibrated and self.warn and not torch.compiler.is_compiling():
            self.warn = False
            warnings.warn(
                "This fake-quantized model is evaluated before calibration: batch norm uses the statistics of each "
                "batch, and activation ranges follow each batch, so a result depends on what is batched together. "
                "Call ghnqat_sdk.calibrate(model, batches) to make it deployable.",
                UncalibratedWarning,
                stacklevel=3,
            )
        return self.calibrated


class _FakeQuantizedLayer:
    """What the fake-quantized layers share: their two quantizers and the model's state."""

    weight: Tensor
    bias: Any
    training: bool
    input_quantizer: FakeQuantizer
    weight_quantizer: FakeQuantizer
    quantization: QuantizationState

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weight, both fake-quantized."""
        if not self.training and self.input_quantizer.bits != FLOAT_BITS:
            self.quantization.check_calibrated()
        return self.input_quantizer(x), self.weight_quantizer(self.weight)


class _FakeQuantizedConv(_FakeQuantizedLayer):
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        x, weight = self.quantized(input)
        return self._conv_forward(x, weight, self.bias)


class FakeQuantizedConv1d(_FakeQuantizedConv, nn.Conv1d):
    """`nn.Conv1d` whose weight and input are fake-quantized."""


class FakeQuantizedConv2d(_FakeQuantizedConv, nn.Conv2d):
    """`nn.Conv2d` whose weight and input are fake-quantized."""


class FakeQuantizedConv3d(_FakeQuantizedConv, nn.Conv3d):
    """`nn.Conv3d` whose weight and input are fake-quantized."""


class FakeQuantizedLinear(_FakeQuantizedLayer, nn.Linear):
    """`nn.Linear` whose weight and input are fake-quantized."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight = self.quantized(input)
        return F.linear(x, weight, self.bias)


class _FakeQuantizedConvTranspose(_FakeQuantizedLayer):
    functional: Callable[..., Tensor]
    spatial_dims: int

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, weight = self.quantized(input)
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


class _CalibratedBatchNorm:
    """Batch norm that evaluates with the statistics of the batch until the model is calibrated.

    Predicted weights come without running statistics; the buffers of the user's model belong to other weights.
    """

    quantization: QuantizationState

    def forward(self: Any, input: Tensor) -> Tensor:
        if self.training and self.quantization.frozen_norms and self.running_mean is not None:
            self._check_input_dim(input)
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                False,
                0.0,
                self.eps,
            )
        if self.training or self.quantization.check_calibrated():
            return super().forward(input)  # type: ignore[misc]
        self._check_input_dim(input)
        if input.numel() // input.shape[1] < 2:
            raise ArgumentError(
                f"Batch norm got an input of shape {tuple(input.shape)}, one value per channel, before calibration, "
                f"when it needs the statistics of a batch. Call ghnqat_sdk.calibrate(model, batches) first, or pass "
                f"two or more images."
            )
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


class CalibratedBatchNorm1d(_CalibratedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that uses batch statistics until calibration."""


class CalibratedBatchNorm2d(_CalibratedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that uses batch statistics until calibration."""


class CalibratedBatchNorm3d(_CalibratedBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that uses batch statistics until calibration."""


class CalibratedSyncBatchNorm(_CalibratedBatchNorm, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that evaluates with its process's batch statistics until calibration."""


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: FakeQuantizedConv1d,
    nn.Conv2d: FakeQuantizedConv2d,
    nn.Conv3d: FakeQuantizedConv3d,
    nn.ConvTranspose1d: FakeQuantizedConvTranspose1d,
    nn.ConvTranspose2d: FakeQuantizedConvTranspose2d,
    nn.ConvTranspose3d: FakeQuantizedConvTranspose3d,
    nn.Linear: FakeQuantizedLinear,
}
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: CalibratedBatchNorm1d,
    nn.BatchNorm2d: CalibratedBatchNorm2d,
    nn.BatchNorm3d: CalibratedBatchNorm3d,
    nn.SyncBatchNorm: CalibratedSyncBatchNorm,
}


def fake_quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The fake-quantized convolutions and linear layers of a model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _FakeQuantizedLayer)
    }


def require_fake_quantized_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `fake_quantized_layers`, of a model that has some.

    Raises:
        ArgumentError: `qmodel` is no fake-quantized model; the message names `caller`, the function that needs one.
    """
    layers = fake_quantized_layers(qmodel) if isinstance(qmodel, nn.Module) else {}
    if not layers:
        raise ArgumentError(
            f"{caller} needs a model from predict_quantized_params; this {type(qmodel).__name__} has no "
            f"fake-quantized layer. Write qmodel = predict_quantized_params(model) first."
        )
    return layers


def require_calibrated_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `require_fake_quantized_layers`, of a model that is calibrated."""
    layers = require_fake_quantized_layers(qmodel, caller)
    if not next(iter(layers.values())).quantization.calibrated:
        raise ArgumentError(
            f"{caller} needs a calibrated model; this {type(qmodel).__name__} is not. Write "
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
            f"The input of {name!r} has no range: no image reached it while calibrating. Calibrate with images that "
            f"do, or predict with bits={{{name!r}: (4, 32), '*': (4, 4)}}."
        )
    low, high = quantizer.range_of(layer.weight)  # the same for every tensor
    return low, high


@contextmanager
def evaluating(qmodel: nn.Module, state: QuantizationState) -> Iterator[None]:
    """Evaluation mode, without the warning before calibration; afterwards, every module's mode is as before."""
    modes, warn = {module: module.training for module in qmodel.modules()}, state.warn
    try:
        state.warn = False
        qmodel.eval()
        yield
    finally:
        state.warn = warn
        for module, training in modes.items():
            module.training = training


def require_module(model: Any, call: str) -> None:
    """Raises an ArgumentError that says to write `call`, unless `model` is an nn.Module."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}; expected an nn.Module. Write {call}."
        )
