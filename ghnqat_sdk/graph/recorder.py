"""Records the torch calls of one run as nodes and edges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ghnqat_sdk.calls import meta_like, tensors_in
from ghnqat_sdk.errors import TraceError
from ghnqat_sdk.graph.channels import ChannelRecord
from ghnqat_sdk.graph.graph import ComputationGraph, Head, Node, ParameterSpec
from ghnqat_sdk.graph.heads import Ends
from ghnqat_sdk.graph.ops import BY_FUNCTION, BY_NAME, Op, Role
from ghnqat_sdk.graph.torch_calls import (
    argument,
    extra_role,
    geometry,
    in_place,
    refine,
    type_or_other,
    written_tensor,
)

UNUSED = "not used by the forward pass"
"""Why a parameter is reached by no node."""


class Recorder(TorchFunctionMode):
    """Sees every torch call as the model wrote it (a convolution, an addition), nested calls left
    out.

    Args:
        parameters: The tensors that stand for the model's parameters in this run, by name.
        layers: Names of the modules that can be fake-quantized.
        shapes_only: Whether the run is on meta tensors, where shapes are all that matters.

    Attributes:
        outside: Modules whose weight is used by operations that no layer runs, name to reason.
        statistics: Modules that hand running statistics to one of torch's norms.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], layers: Collection[str], shapes_only: bool
    ) -> None:
        super().__init__()
        self.layers = layers
        self.outside: dict[str, str] = {}
        self.statistics: dict[str, None] = {}
        self.nodes: list[Node] = []
        self.edges: set[tuple[int, int]] = set()
        self.shapes_only = shapes_only
        self.parameters = parameters
        self._data: dict[int, tuple[int, ...]] = {}  # tensor id → nodes whose output it holds
        self._origin: dict[int, tuple[str, ...]] = {}  # tensor id → parameters it is made of
        self._since: dict[int, int] = {}  # tensor id → the call that gave it its data
        self._filled: dict[int, tuple[int, ...]] = {}  # memory that was written into → nodes
        self._written: dict[int, int] = {}  # memory → the last call that wrote into it
        self._channels = ChannelRecord()
        self._outputs: dict[str, Tensor] = {}
        self._calls = 0
        self._claimed: set[str] = set()
        self._used: set[str] = set()
        self._uses: dict[int, list[str]] = {}  # node → parameters that it computes with
        # ids stay unique while their tensors live
        self._alive: list[Any] = list(parameters.values())
        self._modules: list[str] = [""]
        for name, tensor in parameters.items():
            if tensor.is_floating_point():
                self._origin[id(tensor)] = (name,)

    # What the tracer calls

    def enter(self, module: str) -> None:
        """A module starts to run."""
        self._modules.append(module)

    def leave(self, output: Any = None) -> None:
        """The innermost module is done."""
        module = self._modules.pop()
        if isinstance(output, Tensor) and output.ndim > 1:
            self._outputs[module] = output

    def add_input(self, tensor: Tensor) -> None:
        """Make `tensor` an input of the graph."""
        self._alive.append(tensor)
        self._data[id(tensor)] = (self._add(Node("input"), ()),)

    def finish(self, outputs: Sequence[Tensor]) -> ComputationGraph:
        """The graph that ends in `outputs`."""
        sources = self._sources(outputs)
        if not sources:
            raise TraceError("The model's output does not depend on its input, or holds no tensor.")
        self._add(Node("output"), sources)
        heads, dense = self._mark_classifiers(outputs)
        unreached = {
            name: "is part of a weight that is predicted" if name in self._used else UNUSED
            for name, tensor in self.parameters.items()
            if tensor.is_floating_point() and name not in self._claimed
        }
        edges = tuple(sorted(self.edges))
        read = {name: self._channels.read(tensor, 1) for name, tensor in self._outputs.items()}
        joined = {name: runs for name, runs in read.items() if runs}
        nodes = tuple(self.nodes)
        facts = (unreached, self.outside, dense, joined, heads, tuple(self.statistics))
        return ComputationGraph(nodes, edges, *facts, tuple(tuple(each.shape) for each in outputs))

    # Recording

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one call and record it."""
        kwargs = kwargs or {}
        op = BY_FUNCTION.get(function)
        if (
            op is not None
            and self.shapes_only
            and op.keeps_shape
            and args
            and isinstance(args[0], Tensor)
        ):
            output = args[0] if in_place(function, kwargs) else meta_like(args[0])
        else:
            output = function(*args, **kwargs)
        written = written_tensor(function, args, kwargs)
        produced = list(tensors_in(output)) or ([] if written is None else [written])
        if produced:
            self._note(function, op, args, kwargs, produced)
        if written is not None:
            self._spread(written)
        return output

    def _note(
        self, function: Any, op: Op | None, args: Any, kwargs: Any, produced: list[Tensor]
    ) -> None:
        self._calls += 1
        received = [*tensors_in(args), *tensors_in(kwargs)]
        sources, origin = self._sources(received), self._origins(received)
        if sources:
            name = refine(op, function, args, kwargs, produced[0])
            if name is not None and BY_NAME[name].joins and self._count(received) < 2:
                name = None
            if name is not None or origin:
                name = name or type_or_other(op)
                node = self._build(name, function, args, kwargs, received)
                sources = (self._with_bias(node, sources),)
        if sources:
            self._channels.note(name, function, args, kwargs, produced)
        for tensor in produced:
            self._alive.append(tensor)
            if sources:
                self._data[id(tensor)] = sources
                self._since[id(tensor)] = self._calls
                self._origin.pop(id(tensor), None)
            elif origin:
                self._origin[id(tensor)] = origin

    def _spread(self, written: Tensor) -> None:
        """What was written into a tensor is in all that share its memory."""
        if written.layout is not torch.strided:
            return
        storage = written.untyped_storage()
        memory, held = storage._cdata, self._data.get(id(written), ())
        if written.numel() * written.element_size() < storage.nbytes():
            held = tuple(dict.fromkeys((*self._filled.get(memory, ()), *held)))
        self._filled[memory] = held
        self._written[memory] = self._calls

    def _build(
        self, name: str, function: Any, args: Any, kwargs: Any, received: Sequence[Tensor]
    ) -> Node:
        """The node of one call, with every parameter that enters it."""
        claims: list[ParameterSpec] = []
        seen: set[int] = set()
        for slot in BY_FUNCTION[function].slots if function in BY_FUNCTION else ():
            tensor = argument(args, kwargs, slot.position, slot.keyword)
            if isinstance(tensor, Tensor) and id(tensor) in self._origin:
                seen.add(id(tensor))
                claims += self._claim(tensor, slot.role)
        for tensor in received:
            if id(tensor) in self._origin and id(tensor) not in seen:
                seen.add(id(tensor))
                claims += self._claim(tensor, extra_role(name, tensor))
        module = self._modules[-1]
        of_norm = BY_NAME[name].statistics is not None
        if of_norm and isinstance(argument(args, kwargs, 1, "running_mean"), Tensor):
            self.statistics[module] = None
        runs_layer = BY_NAME[name].quantized and module in self.layers
        if claims and not runs_layer:
            module = _owner(claims[0].name)
        if not runs_layer:
            self._check_float(name, function, module, claims)
        node = geometry(name, args, kwargs)
        reads = self._channels.reads(name, argument(args, kwargs, 0, "input")) if claims else ()
        return replace(node, module=module, parameters=tuple(claims), reads=reads)

    def _check_float(
        self, name: str, function: Any, module: str, claims: Sequence[ParameterSpec]
    ) -> None:
        """Take down what computes with a weight in float.

        Norms, biases, slopes and what is added or concatenated (positions, tokens) are float by
        design.
        """
        op, what = BY_NAME[name], getattr(function, "__name__", str(function))
        if op.quantized:
            self.outside[module] = f"{what} computes with its weight outside of any layer"
        elif not op.joins and any(claim.is_weight for claim in claims):
            self.outside[module] = f"{what} computes with its weight in float"

    def _claim(self, tensor: Tensor, role: Role) -> list[ParameterSpec]:
        """The parameters behind `tensor` that no node has yet: those of its size, or all where none
        has."""
        names = self._origin[id(tensor)]
        self._used.update(names)
        self._uses.setdefault(len(self.nodes), []).extend(names)
        same = [n for n in names if self.parameters[n].numel() == tensor.numel()] or list(names)
        new = [n for n in same if n not in self._claimed]
        self._claimed.update(new)
        return [ParameterSpec(n, tuple(self.parameters[n].shape), role) for n in new]

    def _with_bias(self, node: Node, sources: Sequence[int]) -> int:
        """Add a node, and one of its own for the bias of a weight; returns the last."""
        biases = tuple(p for p in node.parameters if p.role == "bias")
        others = tuple(p for p in node.parameters if p.role != "bias")
        if not biases or node.op in ("multi_head_attention", "other"):
            return self._add(node, sources)
        weight = self._add(replace(node, parameters=others), sources)
        return self._add(Node("bias", node.module, biases), (weight,))

    def _add(self, node: Node, sources: Sequence[int]) -> int:
        self.nodes.append(node)
        index = len(self.nodes) - 1
        self.edges.update((source, index) for source in sources)
        return index

    def _sources(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """The nodes whose output the tensors hold, by themselves or by what else wrote into their
        memory."""
        found: dict[int, None] = {}
        for tensor in tensors:
            found |= dict.fromkeys(self._data.get(id(tensor), ()))
            if self._filled and tensor.layout is torch.strided:
                memory = tensor.untyped_storage()._cdata
                if self._written.get(memory, 0) > self._since.get(id(tensor), 0):
                    found |= dict.fromkeys(self._filled[memory])
        return tuple(found)

    def _count(self, tensors: Sequence[Tensor]) -> int:
        """How many of them hold data."""
        return len({id(tensor) for tensor in tensors if self._sources([tensor])})

    def _origins(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n for t in tensors for n in self._origin.get(id(t), ())))

    def _mark_classifiers(
        self, outputs: Sequence[Tensor]
    ) -> tuple[tuple[Head, ...], tuple[str, ...]]:
        """Make the heads that a table of classes can make "classifier" nodes.

        Returns:
            All heads; and weights of the classifiers whose output has scores for each of several
            places of an image.
        """
        before: dict[int, list[int]] = {}
        for source, target in self.edges:
            before.setdefault(target, []).append(source)
        ends = Ends(self.nodes, before, self._first_uses())
        heads: dict[str, Head] = {}
        dense: dict[str, None] = {}
        for output in outputs:
            for index, *others in ends.heads(output, self._sources([output])):
                specs = [p for i in (index, *others) for p in self.nodes[i].parameters]
                weight = specs[0]
                tabled = ends.tabled(index)
                classes = weight.shape[0] if tabled else output.numel() // len(output)
                heads[weight.name] = Head(tuple(spec.name for spec in specs), classes)
                if tabled:
                    self.nodes[index] = replace(self.nodes[index], op="classifier")
                    if output.ndim > 2 and output.numel() > len(output) * classes:
                        dense[weight.name] = None
        return tuple(heads.values()), tuple(dense)

    def _first_uses(self) -> dict[int, int]:
        """Of nodes without parameters that run with some of an earlier node, that node."""
        owners = {p.name: i for i, node in enumerate(self.nodes) for p in node.parameters}
        again = {i: names for i, names in self._uses.items() if not self.nodes[i].parameters}
        return {i: owners[n[0]] for i, n in again.items() if owners.get(n[0], i) < i}


def _owner(parameter: str) -> str:
    """The module of a parameter; where the parameter is parametrized, the layer."""
    layer, parametrized, _ = f".{parameter}".partition(".parametrizations.")
    return layer.lstrip(".") if parametrized else parameter.rpartition(".")[0]
