"""An ONNX graph with its constants at hand, and the changes that keep what it computes."""

from __future__ import annotations

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


class Graph:
    """A ModelProto's graph; changes are written into the proto.

    Attributes:
        model: The ModelProto.
        constants: Initializers by name.
        nodes: In an order in which they can run; `store` writes them back.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = list(model.graph.node)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        return [each.name for each in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [each.name for each in self.model.graph.output]

    def makers(self) -> dict[str, Any]:
        """The node that makes each value."""
        return {output: node for node in self.nodes for output in node.output}

    def readers(self) -> dict[str, list[Any]]:
        """The nodes that read each value."""
        readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        return readers

    def read(self, name: str) -> Tensor:
        """A copy of a constant."""
        from onnx import numpy_helper

        return torch.from_numpy(numpy_helper.to_array(self.constants[name]).copy())

    def write(self, name: str, tensor: Tensor) -> str:
        """Make or replace a constant; returns its name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = self.model.graph.initializer.add()
        array = tensor.detach().contiguous().numpy()
        self.constants[name].CopyFrom(numpy_helper.from_array(array, name))
        return name

    def stored_weight(self, node: Any, makers: dict[str, Any]) -> Any:
        """The DequantizeLinear of the weight of a layer's node, or None."""
        maker = makers.get(node.input[1]) if len(node.input) > 1 else None
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        levels = self.constants.get(maker.input[0])
        return maker if levels is not None and len(levels.dims) > 1 else None

    def count(self, op: str) -> int:
        """How many nodes are of one kind."""
        return sum(node.op_type == op for node in self.nodes)

    def ranks(self) -> dict[str, int]:
        """Number of dimensions of the values of which it is known."""
        proto = self.model.graph
        kinds = {each.name: each.type.tensor_type for each in (*proto.input, *proto.value_info)}
        return {n: len(kind.shape.dim) for n, kind in kinds.items() if kind.HasField("shape")}

    def dynamic(self) -> tuple[str, ...]:
        """What may vary of the first input, of "batch", "height" and "width"."""
        dimensions = self.model.graph.input[0].type.tensor_type.shape.dim
        names = ("batch", "", "height", "width") if len(dimensions) == 4 else ("batch",)
        pairs = zip(names, dimensions, strict=False)
        return tuple(name for name, each in pairs if name and each.dim_param)

    def declare(self, name: str) -> None:
        """Say of a new value that it is a float tensor."""
        from onnx import TensorProto, helper

        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        self.model.graph.value_info.append(info)

    def drop_unread(self) -> None:
        """Remove the nodes whose outputs nothing reads."""
        read = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if any(name in read for name in node.output):
                kept.append(node)
                read.update(node.input)
        self.nodes = kept[::-1]

    def store(self) -> None:
        """Write nodes and constants that are read into the proto."""
        graph = self.model.graph
        read = {name for node in self.nodes for name in node.input} | set(self.outputs)
        nodes = [copy.deepcopy(node) for node in self.nodes]
        constants = [copy.deepcopy(t) for name, t in self.constants.items() if name in read]
        for field, kept in (("node", nodes), ("initializer", constants)):
            graph.ClearField(field)
            getattr(graph, field).extend(kept)
        self.__init__(self.model)  # type: ignore[misc]


def attributes(node: Any) -> dict[str, Any]:
    """Of a node, by name."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def rename_values(graph: Graph) -> None:
    """Name every value for the module that makes it, and leave no trace of where the graph was
    made."""
    count: Counter[str] = Counter()
    kept = {*graph.inputs, *graph.outputs}
    # Constants get names that no operation or argument has: those of parameters are the user's.
    names = {name: f"constant.{i}" for i, name in enumerate(graph.constants) if name not in kept}
    _rename_constants(graph, names)
    for node in graph.nodes:
        facts = {each.key: each.value for each in node.metadata_props}
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for place, name in enumerate(node.output):
            if name in kept or not name:
                continue
            plain = ".".join(part for part in (scope, node.op_type.lower()) if part)
            names[name] = _next_name(plain, count, kept)
            node.output[place] = names[name]
        node.name = ""
        node.ClearField("doc_string")
    for info in graph.model.graph.value_info:
        info.name = names.get(info.name, info.name)
    for part in (graph.model, graph.model.graph, *graph.nodes, *graph.constants.values()):
        part.ClearField("metadata_props")
    for info in (
        *graph.model.graph.input,
        *graph.model.graph.output,
        *graph.model.graph.value_info,
    ):
        info.ClearField("metadata_props")


def _rename_constants(graph: Graph, names: dict[str, str]) -> None:
    for name, tensor in graph.constants.items():
        tensor.name = names.get(name, name)
    graph.constants = {tensor.name: tensor for tensor in graph.constants.values()}


def _next_name(plain: str, count: Counter[str], taken: Collection[str]) -> str:
    """relu, relu_2, relu_3, …, but for those that inputs and outputs have."""
    while True:
        count[plain] += 1
        name = plain if count[plain] == 1 else f"{plain}_{count[plain]}"
        if name not in taken:
            return name


def separate_constants(graph: Graph) -> None:
    """Each stored weight gets levels and scales of its own: the exporter shares equal constants."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.input[0] not in graph.constants:
            continue
        for place, name in enumerate(node.input):
            if name in seen:
                node.input[place] = graph.write(f"{node.output[0]}.{place}", graph.read(name))
            seen.add(node.input[place])


def fold_batch_norms(graph: Graph) -> None:
    """Fold each batch norm whose input is a layer's output that nothing else reads."""
    makers = graph.makers()
    readers = Counter([name for node in graph.nodes for name in node.input] + graph.outputs)
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        layer = makers.get(norm.input[0])
        if layer is None or not _takes_fold(layer) or readers[norm.input[0]] > 1:
            continue
        weight = graph.stored_weight(layer, makers)
        stored = [*weight.input] if weight is not None else [layer.input[1]]
        numbers = (*stored, *layer.input[2:], *norm.input[1:])
        shared = readers[layer.input[1]] > 1
        if not all(name in graph.constants for name in numbers) or (weight is None and shared):
            continue
        if shared:
            readers[layer.input[1]] -= 1
            stored = _own_weight(graph, layer, weight)
        _fold(graph, layer, norm, stored)


def _own_weight(graph: Graph, layer: Any, weight: Any) -> list[str]:
    """A copy of a stored weight that other layers read as well, for `layer` alone."""
    own = copy.deepcopy(weight)
    own.output[0] = layer.input[1] = f"{layer.output[0]}.weight"
    for place, name in enumerate(weight.input):
        own.input[place] = graph.write(f"{own.output[0]}.{place}", graph.read(name))
    graph.nodes.insert(0, own)  # it reads constants only
    return [*own.input]


def _takes_fold(node: Any) -> bool:
    """Whether entry c of the weight's first dimension makes channel c of the output, unscaled."""
    if node.op_type == "Conv":
        return True
    settings = attributes(node)
    plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
    return node.op_type == "Gemm" and settings.get("transB", 0) == 1 and plain


def norm_factor(graph: Graph, norm: Any) -> tuple[Tensor, Tensor]:
    """(C,) factor and (C,) shift of a batch norm with stored statistics, in float64."""
    epsilon = attributes(norm).get("epsilon", 1e-5)
    gamma, beta, mean, variance = (graph.read(name).double() for name in norm.input[1:5])
    factor = gamma / (variance + epsilon).sqrt()
    return factor, beta - mean * factor


def _fold(graph: Graph, layer: Any, norm: Any, stored: list[str]) -> None:
    """y = γ · (W x + b - mean) / √(var + ε) + β as a layer of its own: each row of W times a
    factor, and a bias."""
    factor, shift = norm_factor(graph, norm)
    weight = graph.read(stored[0])
    by_row = factor.view(-1, *[1] * (weight.ndim - 1))
    if len(stored) == 2:
        scale = graph.read(stored[1])
        # A scale is positive: a negative factor turns the levels. Where it is 0, so are all the
        # weights.
        dead = factor.abs() * scale < torch.finfo(torch.float32).tiny
        graph.write(
            stored[0], (weight * by_row.sign().to(weight.dtype)).mul_(~dead.view_as(by_row))
        )
        graph.write(stored[1], torch.where(dead, 1.0, scale * factor.abs()).float())
    else:
        graph.write(stored[0], (weight * by_row).float())
    if len(layer.input) > 2:
        shift += graph.read(layer.input[2]).double() * factor
    name = graph.write(f"{norm.output[0]}.bias", shift.float())
    inputs = [*layer.input[:2], name]
    layer.ClearField("input")
    layer.input.extend(inputs)
    layer.output[0] = norm.output[0]
    graph.nodes.remove(norm)


def float_twin(graph: Graph) -> bytes:
    """The same graph with float weights and without quantizers, as a file."""
    graph.store()
    twin = Graph(copy.deepcopy(graph.model))
    makers = twin.makers()
    names: dict[str, str] = {}
    for node in twin.nodes:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        if node.op_type == "DequantizeLinear" and node.input[0] in twin.constants:
            levels, scale = (twin.read(name) for name in node.input[:2])
            twin.write(node.output[0], levels * scale.view(-1, *[1] * (levels.ndim - 1)))
        elif node.op_type == "DequantizeLinear":
            levels = makers[node.input[0]]
            quantize = levels if levels.op_type == "QuantizeLinear" else makers[levels.input[0]]
            names[node.output[0]] = quantize.input[0]
    constant = set(twin.constants)
    twin.nodes = [node for node in twin.nodes if node.output[0] not in constant]
    twin.drop_unread()
    twin.store()
    twin.model.graph.ClearField("value_info")
    return twin.model.SerializeToString()


def shorten_names(graph: Graph, kept: Collection[str]) -> None:
    """Numbers for the names of all values but inputs, outputs and `kept`: names can take more bytes
    than scales."""
    stays = {*graph.inputs, *graph.outputs, *kept, ""}
    numbers = (f"_{i}" for i in itertools.count() if f"_{i}" not in stays)
    names: dict[str, str] = {}
    for node in graph.nodes:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                if name not in stays:
                    names[name] = values[place] = names.get(name) or next(numbers)
    _rename_constants(graph, names)
