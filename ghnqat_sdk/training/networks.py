"""Architectures ready for predicted parameters: built on the meta device, traced, and planned as a list of steps.

A plan runs what the fake-quantized module of the same architecture runs, and is faster: batch norm, activation and
rounding are one step, an input that several layers read is rounded once, and products may be in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, fx, nn

from ghnqat_sdk.bits import FLOAT_BITS, Pair
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.quantization.functional import fake_quantize, uniform_noise
from ghnqat_sdk.quantization.ranges import Kind, Ranges
from ghnqat_sdk.training.kernels import (
    NO_LEVELS,
    Clip,
    Geometry,
    Rounding,
    depthwise,
    normalise_clip_round,
    round_activations,
    round_weight,
)
from ghnqat_sdk.training.spaces.protocol import Architecture

Precision = Literal["float32", "bfloat16"]


class ComputeConfig(BaseModel):
    """How networks are run while training; what is predicted is float32 all the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device: str = "cpu"
    """Where the hypernetwork and the networks are: "cpu", "cuda", or "cuda:1"."""
    dense: Precision = "bfloat16"
    """Of activations and of what layers multiply; float32 where a CPU has no bfloat16."""
    decoder: Precision = "bfloat16"
    """Of the decoder's products."""
    compile: bool = True
    """Use compiled kernels for what lies between convolutions, where there is a compiler."""

    def dtype(self, what: Literal["dense", "decoder"]) -> torch.dtype:
        """The type that this machine uses."""
        wanted = getattr(torch, getattr(self, what))
        fast = has_bfloat16() or self.device != "cpu"
        return wanted if wanted is torch.float32 or fast else torch.float32

    def check(self) -> None:
        """Raises an ArgumentError where the device cannot be used."""
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ArgumentError(
                f'compute.device={self.device!r} cannot be used here: {str(error).splitlines()[0]}. Write "cpu", or '
                f"install a torch that knows the device."
            ) from error


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers, and so gains from them."""
    return bool(torch.cpu._is_avx512_bf16_supported())


class Setting(NamedTuple):
    """How a plan is run.

    Attributes:
        bits: (weight, activation) of every layer.
        ranges: How ranges follow from tensors.
        noise: NoiseQuant instead of SimQuant.
        compute: Types of products.
    """

    bits: Pair
    ranges: Ranges
    noise: bool = False
    compute: ComputeConfig = ComputeConfig()

    @property
    def compiled(self) -> bool:
        """Whether compiled kernels are used."""
        return self.compute.compile

    @property
    def rounding(self) -> Rounding | None:
        """What follows an activation, or None where its range needs more than the extremes."""
        bits = self.bits[1]
        if bits == FLOAT_BITS:
            return Rounding()
        share = None if self.noise else self.ranges.share_of_extremes(bits)
        return None if share is None else Rounding(2**bits - 1, share)

    def rounded(self, x: Tensor) -> Tensor:
        """An input (...) of a layer, fake-quantized."""
        if self.rounding is None:
            return self._by_rule(x, "activation", self.bits[1])
        return (
            x
            if self.rounding.levels == NO_LEVELS
            else round_activations(x, self.rounding, self.compiled)
        )

    def rounded_weight(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight (...), fake-quantized, in the type of the product."""
        bits = self.bits[0]
        if bits == FLOAT_BITS:
            return weight.to(dtype)
        sigmas = None if self.noise else self.ranges.sigmas_kept(bits)
        if sigmas is None:
            return self._by_rule(weight, "weight", bits).to(dtype)
        return round_weight(weight, sigmas, 2**bits - 1, dtype, self.compiled)

    def _by_rule(self, x: Tensor, kind: Kind, bits: int) -> Tensor:
        low, high = self.ranges.of(x, kind, bits)
        return (uniform_noise if self.noise else fake_quantize)(x, low, high, bits)


@dataclass(frozen=True)
class Network:
    """An architecture ready for predicted parameters.

    Attributes:
        architecture: What it is of.
        graph: Its computation graph, in float.
        plan: Runs it.
    """

    architecture: Architecture
    graph: ComputationGraph
    plan: Plan


def prepare_network(architecture: Architecture, num_classes: int) -> Network:
    """Build, trace and plan `architecture` without allocating its parameters.

    Raises:
        ArgumentError: its module cannot be traced by torch.fx.
    """
    with torch.device("meta"):
        model = architecture.build(num_classes)
        image = torch.empty(2, 3, 32, 32)
    return Network(architecture, trace(model, image), Plan(model))


class _Tracer(fx.Tracer):
    """Also notes the node of each block's end."""

    def __init__(self, ends: Sequence[nn.Module]) -> None:
        super().__init__()
        self.ends = {id(module): index for index, module in enumerate(ends)}
        self.tapped: dict[int, fx.Node] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if id(m) in self.ends:
            self.tapped[self.ends[id(m)]] = output.node
        return output


_Values = dict[fx.Node, Any]
_Run = Callable[[_Values, Mapping[str, Tensor], Setting], Any]


class Plan:
    """The steps of one network's forward pass.

    Args:
        model: A `BlockedModule`, its parameters on any device: only their names are used.
    """

    def __init__(self, model: nn.Module) -> None:
        tracer = _Tracer(list(model.block_ends()))  # type: ignore[operator]
        try:
            graph = tracer.trace(model)
        except Exception as error:  # whatever the model's forward raises on proxies
            raise ArgumentError(
                f"A network of a space must be traceable by torch.fx, and {type(model).__name__} is not: {error}. "
                f"Write its forward without control flow that depends on tensors."
            ) from error
        self._modules = dict(model.named_modules())
        self._tapped = [tracer.tapped[index] for index in sorted(tracer.tapped)]
        self._steps: list[tuple[fx.Node, _Run]] = []
        self._aliases: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            step = self._step(node)
            if step is not None:
                self._steps.append((node, step))
            if node.op == "placeholder":
                self._input = node
            elif node.op == "output":
                self._output = node.args[0]

    def run(
        self, parameters: Mapping[str, Tensor], images: Tensor, setting: Setting
    ) -> tuple[Tensor, list[Tensor]]:
        """Scores (N, classes) in float32, and the output (N, C, h, w) of each block.

        Args:
            parameters: Of the network, by name.
            images: (N, 3, H, W).
            setting: Bit-widths and how to run.
        """
        dtype = setting.compute.dtype("dense")
        values: _Values = {self._input: images.to(setting.compute.device, dtype)}
        for node, step in self._steps:
            values[node] = step(values, parameters, setting)
        taps = [values[self._resolved(node)] for node in self._tapped]
        return values[self._resolved(self._output)].float(), taps

    # From a node to a step

    def _step(self, node: fx.Node) -> _Run | None:
        if node in self._aliases or node.op in ("placeholder", "output"):
            return None
        if node.op == "get_attr":
            return partial(_get_parameter, str(node.target))
        if node.op == "call_module":
            return self._of_module(node, self._modules[str(node.target)])
        function: Any = _method(str(node.target)) if node.op == "call_method" else node.target
        return partial(_call, function, *self._arguments(node))

    def _of_module(self, node: fx.Node, module: nn.Module) -> _Run:
        source = self._resolved(node.args[0])
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            run: Any = _convolve if isinstance(module, nn.Conv2d) else _multiply
            return partial(run, str(node.target), module, source, self._rounded_already(source))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            clip, end = self._clip_after(node)
            fused = self._rounded_already(node, end)
            return partial(_normalise, str(node.target), module, source, clip, fused)
        if next(module.parameters(), None) is not None:
            return partial(_call_with_parameters, str(node.target), module, *self._arguments(node))
        return partial(_call, module, *self._arguments(node))

    def _resolved(self, node: Any) -> fx.Node:
        """The node whose value this one has."""
        return self._aliases.get(node, node)

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        resolve = self._resolved
        return fx.map_arg(node.args, resolve), fx.map_arg(node.kwargs, resolve)

    def _clip_after(self, node: fx.Node) -> tuple[Clip, fx.Node]:
        """The activation that alone follows a norm, which then becomes part of it, and the last node of both."""
        users = list(node.users)
        if len(users) == 1 and node not in self._tapped:
            clip = self._clip_of(users[0])
            if clip is not None:
                self._aliases[users[0]] = node
                return clip, users[0]
        return Clip(), node

    def _clip_of(self, node: fx.Node) -> Clip | None:
        if node.op == "call_module":
            return _CLIPS.get(type(self._modules[str(node.target)]))
        return _CLIPS.get(node.target)

    def _rounded_already(self, node: fx.Node, end: fx.Node | None = None) -> bool:
        """Whether the output of a norm is read by quantized layers alone, and so is rounded with it."""
        if not self._is_norm(node):
            return False
        if end is None:
            end = next((user for user, of in self._aliases.items() if of is node), node)
        return end not in self._tapped and all(self._is_layer(user) for user in end.users)

    def _is_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._modules[str(node.target)], nn.modules.batchnorm._BatchNorm
        )

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._modules[str(node.target)], (nn.Conv2d, nn.Linear)
        )


_CLIPS: dict[Any, Clip] = {
    nn.ReLU: Clip(0.0),
    nn.ReLU6: Clip(0.0, 6.0),
    F.relu: Clip(0.0),
    torch.relu: Clip(0.0),
    F.relu6: Clip(0.0, 6.0),
    "relu": Clip(0.0),
}
"""Activations that a norm can take in."""


# ---- steps


def _parameter(parameters: Mapping[str, Tensor], module: str, name: str) -> Tensor | None:
    return parameters.get(f"{module}.{name}" if module else name)


def _read(values: _Values, source: fx.Node, rounded: bool, setting: Setting) -> Tensor:
    """An input of a layer, fake-quantized once for all that read it."""
    x = values[source]
    if (rounded and setting.rounding is not None) or setting.bits[1] == FLOAT_BITS:
        return x
    key: Any = ("rounded", source)
    if key not in values:
        values[key] = setting.rounded(x)
    return values[key]


def _convolve(
    name: str,
    module: nn.Conv2d,
    source: fx.Node,
    rounded: bool,
    values: _Values,
    parameters: Mapping[str, Tensor],
    setting: Setting,
) -> Tensor:
    x = _read(values, source, rounded, setting)
    weight = setting.rounded_weight(parameters[f"{name}.weight"], x.dtype)
    bias = _parameter(parameters, name, "bias")
    bias = None if bias is None else bias.to(x.dtype)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return module._conv_forward(x, weight, bias)
    if module.groups == 1 and x.shape[2:] == (1, 1):
        centre = _only_position(module)
        if centre is not None:  # a convolution of one pixel is a product
            return F.linear(x.flatten(1), weight[:, :, centre[0], centre[1]], bias)[
                :, :, None, None
            ]
    if module.in_channels < 8 and module.kernel_size == (1, 1) and not any(module.padding):
        # A branch of a stem. Given as a stride, oneDNN's code for AVX2 corrupts memory in the
        # gradient of the weight.
        rows, columns = module.stride
        return F.conv2d(x[:, :, ::rows, ::columns], weight, bias, groups=module.groups)
    if module.groups == module.in_channels == module.out_channels > 1:
        geometry = Geometry(module.stride, module.padding, module.dilation)  # type: ignore[arg-type]
        y = depthwise(x, weight, geometry, setting.compiled)
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def _only_position(module: nn.Conv2d) -> tuple[int, int] | None:
    """The kernel's position that meets the pixel of an image of one, where the output is one pixel as well."""
    if isinstance(module.padding, str):
        return None
    place = []
    for kernel, padding, dilation in zip(
        module.kernel_size, module.padding, module.dilation, strict=True
    ):
        if 2 * padding - dilation * (kernel - 1) != 0 or padding % dilation:
            return None
        place.append(padding // dilation)
    return place[0], place[1]


def _multiply(
    name: str,
    module: nn.Linear,
    source: fx.Node,
    rounded: bool,
    values: _Values,
    parameters: Mapping[str, Tensor],
    setting: Setting,
) -> Tensor:
    x = _read(values, source, rounded, setting)
    weight = setting.rounded_weight(parameters[f"{name}.weight"], x.dtype)
    bias = _parameter(parameters, name, "bias")
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _normalise(
    name: str,
    module: nn.modules.batchnorm._BatchNorm,
    source: fx.Node,
    clip: Clip,
    fused: bool,
    values: _Values,
    parameters: Mapping[str, Tensor],
    setting: Setting,
) -> Tensor:
    """Batch norm with the statistics of the batch, and what follows it."""
    x = values[source]
    rounding = setting.rounding if fused and setting.rounding is not None else Rounding()
    gain, shift = (_parameter(parameters, name, what) for what in ("weight", "bias"))
    channels = x.shape[1]
    gain = torch.ones(channels, device=x.device) if gain is None else gain
    shift = torch.zeros(channels, device=x.device) if shift is None else shift
    return normalise_clip_round(x, gain, shift, module.eps, clip, rounding, setting.compiled)


def _call_with_parameters(
    name: str,
    module: nn.Module,
    args: Any,
    kwargs: Any,
    values: _Values,
    parameters: Mapping[str, Tensor],
    setting: Setting,
) -> Any:
    dtype = setting.compute.dtype("dense")
    own = {key: parameters[f"{name}.{key}"].to(dtype) for key, _ in module.named_parameters()}
    args, kwargs = fx.map_arg((args, kwargs), values.__getitem__)
    return torch.func.functional_call(module, own, args, kwargs)


def _call(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    values: _Values,
    parameters: Mapping[str, Tensor],
    setting: Setting,
) -> Any:
    args, kwargs = fx.map_arg((args, kwargs), values.__getitem__)
    return function(*args, **kwargs)


def _get_parameter(
    name: str, values: _Values, parameters: Mapping[str, Tensor], setting: Setting
) -> Tensor:
    return parameters[name].to(setting.compute.dtype("dense"))


def _method(name: str) -> Callable[..., Any]:
    return lambda first, *args, **kwargs: getattr(first, name)(*args, **kwargs)
