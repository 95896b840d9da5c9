"""Fake-quantized layers and calibrated norms: torch's own, and subclasses made for any other class.

A layer names its row of `graph.ops`. Layers of torch have a class here each; for a class that
derives from one, `fake_quantized_class` makes a subclass, so that `isinstance` stays true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import BY_FUNCTION, BY_NAME, op_of
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
        count = BY_NAME[self.op].macs
        assert count is not None
        return count(tuple(input.shape), tuple(self.weight.shape), tuple(output.shape))


class _FakeQuantizedConv(FakeQuantizedLayer):
    op = "conv"
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


class FakeQuantizedLinear(FakeQuantizedLayer, nn.Linear):
    """`nn.Linear` whose weight and input are fake-quantized."""

    op = "linear"

    def forward(self, input: Tensor) -> Tensor:
        """(..., features in) to (..., features out)."""
        x, weight = self.quantized(input)
        return F.linear(x, weight, self.bias)


class _FakeQuantizedConvTranspose(FakeQuantizedLayer):
    op = "transposed_conv"
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
            x, weight = self.layer.quantized(operands["input"], operands["weight"])
            return function(x, weight, *args[2:], **kwargs)
        return function(*args, **kwargs)


class _OwnForward(FakeQuantizedLayer):
    """A layer of a class with a forward of its own: what it hands to the op is fake-quantized."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Operands(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class CalibratedNorm:
    """A norm that evaluates with the statistics of the batch until the model is calibrated.

    Predicted weights come without running statistics; the buffers of the user's model belong to
    other weights.
    """

    quantization: QuantizationState
    observe: Callable[[Tensor], None] | None = None

    def forward(self: Any, input: Tensor) -> Tensor:
        """As the norm's own, with the statistics that hold."""
        forward = super().forward  # type: ignore[misc]
        if self.training:
            if not self.quantization.frozen_norms:
                return forward(input)
            with _evaluating(self):
                return forward(input)
        if self.observe is not None:
            self.observe(input)
        if self.quantization.check_calibrated():
            return forward(input)
        self._check_values(input)
        with _batch_statistics(self):
            return forward(input)

    def _check_values(self: Any, input: Tensor) -> None:
        if BY_NAME[_row(type(self))].statistics != "batch" or input.ndim < 2:
            return
        if input.numel() // max(1, input.shape[1]) < 2:
            raise ArgumentError(
                f"Batch norm got an input of shape {tuple(input.shape)}, one value per channel, "
                f"before calibration, when it needs the statistics of a batch. Call "
                f"ghnqat_sdk.calibrate(model, batches) first, or pass two or more images."
            )


@contextmanager
def _evaluating(norm: nn.Module) -> Iterator[None]:
    norm.training = False
    try:
        yield
    finally:
        norm.training = True


@contextmanager
def _batch_statistics(norm: Any) -> Iterator[None]:
    """Without running statistics, a norm in evaluation mode takes those of its input."""
    mean, variance, tracks = norm.running_mean, norm.running_var, norm.track_running_stats
    norm.running_mean = norm.running_var = None
    norm.track_running_stats = False
    try:
        yield
    finally:
        norm.running_mean, norm.running_var, norm.track_running_stats = mean, variance, tracks


class CalibratedBatchNorm1d(CalibratedNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that uses batch statistics until calibration."""


class CalibratedBatchNorm2d(CalibratedNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that uses batch statistics until calibration."""


class CalibratedBatchNorm3d(CalibratedNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` that uses batch statistics until calibration."""


class CalibratedSyncBatchNorm(CalibratedNorm, nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that evaluates with its process's batch statistics until calibration."""


class CalibratedInstanceNorm1d(CalibratedNorm, nn.InstanceNorm1d):
    """`nn.InstanceNorm1d` that uses each image's own statistics until calibration."""


class CalibratedInstanceNorm2d(CalibratedNorm, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` that uses each image's own statistics until calibration."""


class CalibratedInstanceNorm3d(CalibratedNorm, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` that uses each image's own statistics until calibration."""


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
    nn.InstanceNorm1d: CalibratedInstanceNorm1d,
    nn.InstanceNorm2d: CalibratedInstanceNorm2d,
    nn.InstanceNorm3d: CalibratedInstanceNorm3d,
}
_OURS = LAYERS | NORMS
_FLOAT = {ours: theirs for theirs, ours in _OURS.items()}


_made: dict[type, type[nn.Module]] = {}


def fake_quantized_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that stands for `kind`, a convolution, linear layer or norm, or derived from one."""
    if kind in _OURS:
        return _OURS[kind]
    if kind not in _made:
        _made[kind] = _subclass(kind)
    return _made[kind]


def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    base = next((each for each in kind.__mro__ if each in _OURS), None)
    if base is not None and _runs_as(kind, base):
        ours: type = _OURS[base]
    elif BY_NAME[_row(kind)].statistics is not None:
        ours = CalibratedNorm
    else:
        ours = type(f"_OwnForward_{_row(kind)}", (_OwnForward,), {"op": _row(kind)})
    name = f"FakeQuantized{kind.__name__}"
    members = {
        "float_class": kind,
        "__reduce_ex__": _reduced,
        "__doc__": f"`{kind.__name__}`, fake-quantized.",
    }
    return type(name, (ours, kind), members)


def float_class(kind: type) -> type:
    """The class that `fake_quantized_class` stands in for, also where another was put over it since."""
    if kind in _FLOAT:
        return _FLOAT[kind]
    if "float_class" in vars(kind):
        return vars(kind)["float_class"]
    bases = tuple(float_class(base) for base in kind.__bases__)
    if bases == kind.__bases__:
        return kind
    own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, own)


def _runs_as(kind: type, base: type) -> bool:
    """Whether `kind` computes by the methods of `base`."""
    return all(
        getattr(kind, name, None) is getattr(base, name, None)
        for name in ("forward", "_conv_forward", "_output_padding")
    )


def _row(kind: type) -> str:
    """Name of the row of `graph.ops` whose modules `kind` is one of."""
    return next(op.name for op in BY_NAME.values() if issubclass(kind, op.modules))


def _reduced(layer: Any, protocol: Any) -> Any:
    """Pickles a layer by its float class, which can be imported; its own is made again."""
    state = object.__reduce_ex__(layer, protocol)[2]
    return _new_layer, (type(layer).float_class,), state


def _new_layer(kind: type[nn.Module]) -> nn.Module:
    ours = fake_quantized_class(kind)
    return ours.__new__(ours)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a norm with running statistics, which calibration re-estimates."""
    op = op_of(module)
    has = getattr(module, "running_mean", None) is not None
    return has and op is not None and op.statistics is not None


def fake_quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The fake-quantized convolutions and linear layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizedLayer)}


def calibrated_norms(model: nn.Module) -> dict[str, Any]:
    """The norms with running statistics of a fake-quantized model, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, CalibratedNorm) and is_norm(module)  # type: ignore[arg-type]
    }


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
