"""A network's forward pass as a list of steps.

A plan runs what the fake-quantized module of the same architecture runs, and is faster: batch norm,
activation and rounding are one step, an input that several layers read is rounded once, and
products may be in bfloat16.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.ops import op_of
from ghnqat_sdk.graph.torch_calls import argument
from ghnqat_sdk.quantization.classes import runs_as
from ghnqat_sdk.quantization.ranges import Kind
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.rounding import Clip
from ghnqat_sdk.training.steps import (
    Pass,
    Slot,
    Step,
    call,
    call_with_parameters,
    convolve,
    get_parameter,
    method,
    multiply,
    normalise,
    pool,
)


class ForwardPlan:
    """The steps of one network's forward pass.

    Args:
        model: A `BlockedModule`, its parameters on any device: only their names are used.
        inputs: Layers that read the images; see `input_layers`.

    Raises:
        ArgumentError: torch.fx cannot trace the model, or it has a layer or a batch norm that no
            step computes as it does.
    """

    def __init__(self, model: nn.Module, inputs: Collection[str] = ()) -> None:
        tracer = _Tracer(list(model.block_ends()))  # type: ignore[operator]
        try:
            graph = tracer.trace(model)
        except Exception as error:  # whatever the model's forward raises on proxies
            raise ArgumentError(
                f"A network of a space must be traceable by torch.fx, and "
                f"{type(model).__name__} is not: {error}. Write its forward without control flow "
                f"that depends on tensors."
            ) from error
        tapped = [tracer.tapped[index] for index in sorted(tracer.tapped)]
        planner = _Planner(graph, model, tapped, inputs)
        self._steps = planner.steps
        self._input = planner.input
        self._output = planner.output
        self._tapped = [planner.slot(node) for node in tapped]

    @property
    def taps(self) -> int:
        """How many blocks' outputs a run gives."""
        return len(self._tapped)

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
        values: dict[Any, Any] = {self._input: images.to(setting.compute.device, dtype)}
        now = Pass(values, parameters, setting)
        for slot, step in self._steps:
            values[slot] = step(now)
        return values[self._output].float(), [values[slot] for slot in self._tapped]


class _Planner:
    """Makes steps of the nodes of a graph.

    Attributes:
        steps: With the slots of their values.
        input: Slot of the images.
        output: Slot of the scores.
    """

    def __init__(
        self,
        graph: fx.Graph,
        model: nn.Module,
        tapped: Sequence[fx.Node],
        inputs: Collection[str],
    ) -> None:
        self._modules = dict(model.named_modules())
        self._layers = quantizable_layers(model)
        self._tapped = tapped
        self._inputs = inputs
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}
        self._aliases: dict[fx.Node, fx.Node] = {}
        self.steps: list[tuple[Slot, Step]] = []
        for node in graph.nodes:
            step = self._step(node)
            if step is not None:
                self.steps.append((self.slot(node), step))
            if node.op == "placeholder":
                self.input = self.slot(node)
            elif node.op == "output":
                self.output = self.slot(node.args[0])

    def slot(self, node: fx.Node) -> Slot:
        """Of the value that a node has."""
        return Slot(self._numbers[self._resolved(node)])

    def _step(self, node: fx.Node) -> Step | None:
        if node in self._aliases or node.op in ("placeholder", "output"):
            return None
        if node.op == "get_attr":
            return partial(get_parameter, str(node.target))
        if node.op == "call_module":
            return self._of_module(node, self._modules[str(node.target)])
        function: Any = method(str(node.target)) if node.op == "call_method" else node.target
        return partial(call, function, *self._arguments(node))

    def _of_module(self, node: fx.Node, module: nn.Module) -> Step:
        name = str(node.target)
        source = self._resolved(argument(node.args, node.kwargs, 0, "input"))
        if name in self._layers:
            run = _rounding_step(name, module)
            kind: Kind = "input" if name in self._inputs else "activation"
            rounded = self._rounded_already(source)
            return partial(run, name, module, self.slot(source), rounded, kind)
        if _is_batch_norm(module):
            _refuse_own_forward(name, module)
            clip, end = self._clip_after(node)
            fused = self._rounded_already(node, end)
            return partial(normalise, name, module, self.slot(source), clip, fused)
        if isinstance(module, nn.AvgPool2d):
            return partial(pool, module, self.slot(source))
        if next(module.parameters(), None) is not None:
            return partial(call_with_parameters, name, module, *self._arguments(node))
        return partial(call, module, *self._arguments(node))

    def _resolved(self, node: Any) -> fx.Node:
        """The node whose value this one has."""
        return self._aliases.get(node, node)

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        return fx.map_arg(node.args, self.slot), fx.map_arg(node.kwargs, self.slot)

    def _clip_after(self, node: fx.Node) -> tuple[Clip, fx.Node]:
        """The activation that alone follows a norm and becomes part of it, and the last of both."""
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
        """Whether quantized layers alone read a norm's output, which is then rounded with it."""
        if not self._is_norm(node):
            return False
        if end is None:
            end = next((user for user, of in self._aliases.items() if of is node), node)
        return end not in self._tapped and all(self._is_layer(user) for user in end.users)

    def _is_norm(self, node: fx.Node) -> bool:
        return node.op == "call_module" and _is_batch_norm(self._modules[str(node.target)])

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in self._layers


_ROUNDING_STEPS: dict[type[nn.Module], Any] = {nn.Conv2d: convolve, nn.Linear: multiply}
"""What computes a layer of each class, and of others that leave all to it."""


def _rounding_step(name: str, module: nn.Module) -> Any:
    for base, step in _ROUNDING_STEPS.items():
        leaves_forward = isinstance(module, base) and runs_as(type(module), base)
        if leaves_forward and "weight" in module._parameters:
            return step
    raise ArgumentError(
        f"Training cannot round the {type(module).__name__} {name!r}; expected nn.Conv2d, "
        f"nn.Linear, or a class that leaves weight and forward to one of them. Write one of them "
        f"in its place (nn.Upsample and nn.Conv2d for a transposed convolution), and what a "
        f"forward of its own does in a module that calls it."
    )


def _is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    op = op_of(module)
    return op is not None and op.statistics == "batch"


def _refuse_own_forward(name: str, norm: nn.Module) -> None:
    if "forward" in vars(norm) or not norm.forward.__module__.startswith("torch.nn.modules."):
        raise ArgumentError(
            f"Training computes batch norm itself, and the {type(norm).__name__} {name!r} has a "
            f"forward of its own. Write nn.BatchNorm2d, and what the forward does in a module "
            f"that calls it."
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


class _Tracer(fx.Tracer):
    """Also notes the node of each block's end, and keeps whole what is a layer or a norm."""

    def __init__(self, ends: Sequence[nn.Module]) -> None:
        super().__init__()
        self.ends = {id(module): index for index, module in enumerate(ends)}
        self.tapped: dict[int, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return op_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if id(m) in self.ends:
            self.tapped[self.ends[id(m)]] = output.node
        return output
