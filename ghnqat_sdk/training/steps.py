"""The steps of a plan: what one node of a network computes from the values before it.

Each takes what its plan knows of the node, and last the pass that it is a step of. Nothing here
refers to nodes of torch.fx, which refer to each other: a plan is gone when its network is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.quantization.ranges import Kind
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.depthwise import Geometry, depthwise
from ghnqat_sdk.training.kernels import normalise_clip_round
from ghnqat_sdk.training.pooling import average_pool
from ghnqat_sdk.training.rounding import ActivationRounding, Clip


class Slot(int):
    """The number of a node, which stands for its value in the arguments of later steps."""


class Pass(NamedTuple):
    """One forward pass of a network.

    Attributes:
        values: So far, by slot.
        parameters: Of the network, by name.
        setting: Bit-widths and how to run.
    """

    values: dict[Any, Any]
    parameters: Mapping[str, Tensor]
    setting: Setting

    def parameter(self, module: str, name: str) -> Tensor | None:
        """A parameter of a module, None where it has none of that name."""
        return self.parameters.get(f"{module}.{name}" if module else name)

    def rounded(self, source: Slot, rounded: bool, kind: Kind) -> Tensor:
        """An input of a layer, fake-quantized once for all that read it; or `rounded` before."""
        x = self.values[source]
        setting = self.setting
        if (rounded and setting.kernel_rounding is not None) or setting.bits[1] == FLOAT_BITS:
            return x
        key = ("rounded", source, kind)
        if key not in self.values:
            self.values[key] = setting.rounded(x, kind)
        return self.values[key]

    def given(self, arguments: Any) -> Any:
        """Arguments with values in place of slots."""
        return map_aggregate(arguments, self._value)

    def _value(self, argument: Any) -> Any:
        return self.values[argument] if isinstance(argument, Slot) else argument


Step = Callable[[Pass], Any]


def _operands(
    name: str, source: Slot, rounded: bool, kind: Kind, now: Pass
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a fake-quantized layer computes with: its input, its weight and, if it has one, its
    bias."""
    x = now.rounded(source, rounded, kind)
    weight = now.setting.rounded_weight(now.parameters[f"{name}.weight"], x.dtype)
    bias = now.parameter(name, "bias")
    return x, weight, None if bias is None else bias.to(x.dtype)


def convolve(
    name: str, module: nn.Conv2d, source: Slot, rounded: bool, kind: Kind, now: Pass
) -> Tensor:
    """A fake-quantized convolution."""
    x, weight, bias = _operands(name, source, rounded, kind, now)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return module._conv_forward(x, weight, bias)
    if module.groups == 1 and x.shape[2:] == (1, 1):
        place = _only_position(module)
        if place is not None:  # a convolution of one pixel is a product
            y = F.linear(x.flatten(1), weight[:, :, place[0], place[1]], bias)
            return y[:, :, None, None]
    if module.in_channels < 8 and module.kernel_size == (1, 1) and not any(module.padding):
        # A branch of a stem. Given as a stride, oneDNN's code for AVX2 corrupts memory in the
        # gradient of the weight.
        rows, columns = module.stride
        return F.conv2d(x[:, :, ::rows, ::columns], weight, bias, groups=module.groups)
    if module.groups == module.in_channels == module.out_channels > 1:
        geometry = Geometry(module.stride, module.padding, module.dilation)  # type: ignore[arg-type]
        y = depthwise(x, weight, geometry, now.setting.compiled)
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def _only_position(module: nn.Conv2d) -> tuple[int, int] | None:
    """The kernel's position that meets the pixel of an image of one.

    None where the output is more than one pixel, or none of the kernel meets it.
    """
    if isinstance(module.padding, str):
        return None
    place = []
    sides = zip(module.kernel_size, module.padding, module.dilation, strict=True)
    for kernel, padding, dilation in sides:
        if 2 * padding - dilation * (kernel - 1) != 0 or padding % dilation:
            return None
        place.append(padding // dilation)
    return place[0], place[1]


def multiply(
    name: str, module: nn.Linear, source: Slot, rounded: bool, kind: Kind, now: Pass
) -> Tensor:
    """A fake-quantized linear layer."""
    return F.linear(*_operands(name, source, rounded, kind, now))


def normalise(
    name: str,
    module: nn.modules.batchnorm._BatchNorm,
    source: Slot,
    clip: Clip,
    fused: bool,
    now: Pass,
) -> Tensor:
    """Batch norm with the statistics of the batch, and what follows it."""
    x = now.values[source]
    setting = now.setting
    rounding = setting.kernel_rounding if fused else None
    rounding = ActivationRounding() if rounding is None else rounding
    gain = now.parameter(name, "weight")
    shift = now.parameter(name, "bias")
    channels = x.shape[1]
    gain = torch.ones(channels, device=x.device) if gain is None else gain
    shift = torch.zeros(channels, device=x.device) if shift is None else shift
    return normalise_clip_round(x, gain, shift, module.eps, clip, rounding, setting.compiled)


def call_with_parameters(name: str, module: nn.Module, args: Any, kwargs: Any, now: Pass) -> Any:
    """Any other module that has parameters."""
    dtype = now.setting.compute.dtype("dense")
    own = {key: now.parameters[f"{name}.{key}"].to(dtype) for key, _ in module.named_parameters()}
    args, kwargs = now.given((args, kwargs))
    return torch.func.functional_call(module, own, args, kwargs)


def pool(module: nn.AvgPool2d, source: Slot, now: Pass) -> Tensor:
    """An average pool."""
    return average_pool(module, now.values[source], now.setting.compiled)


def call(function: Callable[..., Any], args: Any, kwargs: Any, now: Pass) -> Any:
    """A function, a method, or a module without parameters."""
    args, kwargs = now.given((args, kwargs))
    return function(*args, **kwargs)


def get_parameter(name: str, now: Pass) -> Tensor:
    """A parameter that the forward pass reads itself."""
    return now.parameters[name].to(now.setting.compute.dtype("dense"))


def method(name: str) -> Callable[..., Any]:
    """A tensor's method as a function of the tensor."""
    return lambda first, *args, **kwargs: getattr(first, name)(*args, **kwargs)
