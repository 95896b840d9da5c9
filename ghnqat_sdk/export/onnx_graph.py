"""An exported ONNX graph made smaller, in place: batch norms folded, biases apart, few bits to a byte."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor


def separate_constants(model: Any) -> None:
    """Each stored weight gets levels, scales and zero points of its own: the exporter shares equal constants."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in values:
            continue
        for place, name in enumerate(node.input):
            if name in seen:
                own = graph.initializer.add()
                own.CopyFrom(values[name])
                own.name = node.input[place] = f"{node.output[0]}.{place}"
            seen.add(node.input[place])


def fold_batch_norms(model: Any) -> None:
    """Fold each batch norm whose input is a layer's output that nothing else reads."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers = Counter(
        [name for node in graph.node for name in node.input] + [each.name for each in graph.output]
    )
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = makers.get(norm.input[0])
        if layer is None or not _takes_fold(layer) or readers[norm.input[0]] > 1:
            continue
        weight = makers.get(layer.input[1])
        stored = (
            weight.input
            if weight is not None and weight.op_type == "DequantizeLinear"
            else layer.input[1:2]
        )
        numbers = [values.get(name) for name in (*stored, *layer.input[2:], *norm.input[1:])]
        if None in numbers or (weight is None and readers[layer.input[1]] > 1):
            continue
        if weight is not None and readers[layer.input[1]] > 1:
            readers[layer.input[1]] -= 1
            stored = _own_weight(graph, values, layer, weight)
        _fold(graph, values, layer, norm, stored)


def _own_weight(graph: Any, values: dict[str, Any], layer: Any, weight: Any) -> list[str]:
    """A copy of a stored weight that other layers read as well, for `layer` alone."""
    own = copy.deepcopy(weight)
    own.name = own.output[0] = layer.input[1] = f"{layer.output[0]}.weight"
    for place, name in enumerate(weight.input):
        own.input[place] = f"{own.output[0]}.{place}"
        values[own.input[place]] = graph.initializer.add()
        values[own.input[place]].CopyFrom(values[name])
        values[own.input[place]].name = own.input[place]
    graph.node.insert(0, own)  # it reads constants only
    return [*own.input]


def _takes_fold(node: Any) -> bool:
    """Whether entry c of the weight's first dimension makes channel c of the output, unscaled."""
    if node.op_type == "Conv":
        return True
    settings = {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
    plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
    return node.op_type == "Gemm" and settings.get("transB", 0) == 1 and plain


def _fold(graph: Any, values: dict[str, Any], layer: Any, norm: Any, stored: Any) -> None:
    """y = γ · (W x + b - mean) / √(var + ε) + β as a layer of its own: each row of W times a factor, and a bias."""
    from onnx import numpy_helper

    def read(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(values[name]).copy())

    def write(name: str, tensor: Tensor) -> None:
        values[name].CopyFrom(numpy_helper.from_array(tensor.numpy(), name))

    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = (read(name).double() for name in norm.input[1:5])
    factor = gamma / (variance + epsilon).sqrt()
    if len(stored) == 3:
        levels, scale, zero_point = (read(name) for name in stored)
        turned = (factor < 0).view(-1, *[1] * (levels.ndim - 1))
        # A scale is positive: a negative factor mirrors the levels instead. Where it is 0, so are all the weights.
        top = torch.maximum(levels.max(), zero_point.max())
        levels = torch.where(turned, top - levels, levels)
        zero_point = torch.where(factor < 0, top - zero_point, zero_point)
        dead = factor.abs() * scale < torch.finfo(torch.float32).tiny
        levels[dead] = zero_point[dead].view(-1, *[1] * (levels.ndim - 1))
        write(stored[0], levels)
        write(stored[1], torch.where(dead, 1.0, scale * factor.abs()).float())
        write(stored[2], zero_point)
    else:
        weight = read(stored[0])
        write(stored[0], (weight * factor.view(-1, *[1] * (weight.ndim - 1))).float())
    bias = read(layer.input[2]).double() if len(layer.input) > 2 else torch.zeros_like(mean)
    name = f"{norm.output[0]}.bias"
    values[name] = graph.initializer.add()
    write(name, (beta + (bias - mean) * factor).float())
    inputs = [*layer.input[:2], name]
    layer.ClearField("input")
    layer.input.extend(inputs)
    layer.output[0] = norm.output[0]
    graph.node.remove(norm)


def set_biases_apart(model: Any, packed: bool) -> set[str]:
    """Biases of layers at few bits as an Add of their own; returns the weights of the convolutions among them.

    Runtimes that compute in integers round a bias to multiples of (scale of the input) · (scale of the weight), which
    is coarse at few bits. An Add also keeps ONNX Runtime from fusing into kernels that refuse them 2-bit weights, and
    those with mirrored channels, whose zero points differ.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def stored_bits(name: str) -> int | None:
        weight = makers.get(name)
        if weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] not in values:
            return None
        return int(numpy_helper.to_array(values[weight.input[0]]).max()).bit_length()

    def input_bits(name: str) -> int:
        levels = (
            makers.get(makers[name].input[0]) if name in makers and makers[name].input else None
        )
        if levels is None or levels.op_type != "Clip" or makers[name].op_type != "DequantizeLinear":
            return 8
        return int(numpy_helper.to_array(values[levels.input[2]])).bit_length()

    apart, nodes = set(), []
    for node in graph.node:
        nodes.append(node)
        bits = (
            stored_bits(node.input[1])
            if node.op_type in ("Conv", "Gemm") and len(node.input) > 2
            else None
        )
        if bits is None:
            continue
        zero_points = numpy_helper.to_array(values[makers[node.input[1]].input[2]])
        coarse, small = bits + input_bits(node.input[0]) < 12, packed and bits <= 4
        if not (coarse or small or (zero_points != zero_points[0]).any()):
            continue
        bias = numpy_helper.to_array(values[node.input[2]])
        shape = (1, -1, *[1] * len(values[makers[node.input[1]].input[0]].dims[2:]))
        name, output = f"{node.output[0]}.bias_apart", node.output[0]
        graph.initializer.append(numpy_helper.from_array(bias.reshape(shape), name))
        node.input.pop()
        node.output[0] = f"{output}.before_bias"
        nodes.append(helper.make_node("Add", [node.output[0], name], [output]))
        if node.op_type == "Conv":
            apart.add(node.input[1])
    del graph.node[:]
    graph.node.extend(nodes)
    return apart


def pack(model: Any, apart: set[str]) -> None:
    """Stored weights with few enough levels as UINT4, and those of `apart` as UINT2."""
    from onnx import TensorProto, helper, numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in values:
            continue
        levels, _, zero_point = (values[name] for name in node.input)
        highest = max(numpy_helper.to_array(tensor).max() for tensor in (levels, zero_point))
        if highest > 15:
            continue
        width = 2 if highest < 4 and node.output[0] in apart else 4
        kind = TensorProto.UINT2 if width == 2 else TensorProto.UINT4
        for tensor in (levels, zero_point):
            whole = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            raw = _packed_bytes(whole.flatten(), width)
            tensor.CopyFrom(helper.make_tensor(tensor.name, kind, whole.shape, raw, raw=True))


def _packed_bytes(levels: Tensor, width: int) -> bytes:
    """uint8 levels (N,), several to a byte, the first in its lowest bits."""
    each = 8 // width
    rows = torch.nn.functional.pad(levels, (0, -len(levels) % each)).view(-1, each)
    return (
        (rows << torch.arange(0, 8, width, dtype=torch.uint8))
        .sum(1, dtype=torch.uint8)
        .numpy()
        .tobytes()
    )


def drop_unused(model: Any) -> None:
    """Initializers that nothing reads, and the shapes of values that are gone."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {
        each.name for each in graph.output
    }
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
