"""A calibrated model as an ONNX file with integer weights, checked against ONNX Runtime."""

from __future__ import annotations

import copy
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError, CheckpointError, ExportError
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.graph.graph import FLOAT_BITS
from ghnqat_sdk.graph.recorder import tensors_in
from ghnqat_sdk.quantization.convert import NORMS, evaluating, require_fake_quantized_layers, to_float
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.qat import fix_steps
from ghnqat_sdk.quantization.quantizers import FakeQuantizer

_OPSET = 21  # the first with 4-bit integers
_OPSET_2_BITS = 25
_DIFFERENT = 0.1  # of the output's mean square; rounding differently now and then stays far below


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and how ONNX Runtime's outputs compare with the model's on the batch.

    Attributes:
        path: Of the file.
        size: Of the file, in bytes.
        float_size: Of the same model exported in float, in bytes.
        largest_difference: Between two outputs.
        largest_output: Largest absolute output, to compare with.
        agreement: Share of the images whose largest output is the same, from 0 to 1.
        images: In the batch.
        folded: Batch norms that became part of a layer.
        kept: Batch norms that follow no layer and stay.
        opset: Of ONNX.
        dynamic_batch: Whether the file takes batches of any size.
    """

    path: Path
    size: int
    float_size: int
    largest_difference: float
    largest_output: float
    agreement: float
    images: int
    folded: int
    kept: int
    opset: int
    dynamic_batch: bool

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.size:,} bytes ({self.float_size / self.size:.1f} times smaller than in float), "
            f"opset {self.opset}, {'any batch size' if self.dynamic_batch else 'one batch size'}\n"
            f"  batch norms: {self.folded} folded, {self.kept} kept\n"
            f"  ONNX Runtime on {self.images} images: largest difference {self.largest_difference:.2g} where the "
            f"largest output is {self.largest_output:.2g}, the same class for {100 * self.agreement:.1f} %"
        )


def export_onnx(qmodel: nn.Module, path: str | Path, batch: Any, *, packed: bool = False) -> OnnxReport:
    """Write a calibrated model as ONNX and run it in ONNX Runtime.

    Weights are stored as integers. 8-bit inputs pass QuantizeLinear and DequantizeLinear (QDQ); at fewer bits a Clip
    lies between them (QCDQ, Pappalardo et al. 2022). A batch norm that follows a layer is folded into the scales of
    its output channels, which changes no integer.

    Args:
        qmodel: From `predict_quantized_params`, calibrated; stays as it is.
        path: File to write, ending in .onnx.
        batch: A tensor (N, C, H, W), a tuple of arguments, or a dict of keyword arguments, to export and check with.
        packed: Store weights of 3 and 4 bits as UINT4 and of 2 bits as UINT2, which fewer runtimes read (opset 21 and
            25), instead of as UINT8.

    Raises:
        ArgumentError: the model is not calibrated, cannot be run on the batch or exported, or ONNX is not installed.
        CheckpointError: the file cannot be written.
        ExportError: ONNX Runtime gives other outputs; the file is not written.
    """
    onnx, _ = _onnx_packages()
    layers = require_fake_quantized_layers(qmodel, "export_onnx")
    state = next(iter(layers.values())).quantization
    if not state.calibrated:
        raise ArgumentError("export_onnx needs a calibrated model. Write calibrate(qmodel, batches) first.")
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".onnx":
        raise ArgumentError(f"path={path!r} does not end in .onnx. Write export_onnx(qmodel, 'model.onnx', batch).")
    args, kwargs = _arguments(batch)
    with evaluating(qmodel, state), torch.no_grad():
        expected = _run(qmodel, args, kwargs)

    bare = fix_steps(copy.deepcopy(qmodel)).cpu().eval()
    opset = _OPSET_2_BITS if packed and any(x.weight_quantizer.bits == 2 for x in layers.values()) else _OPSET
    model = _to_onnx(_with_onnx_quantizers(copy.deepcopy(bare)), args, kwargs, opset)
    _separate_constants(model)
    _fold_batch_norms(model)
    kept = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    apart = _set_biases_apart(model, packed)
    if packed:
        _pack(model, apart if opset == _OPSET_2_BITS else set())
    _drop_unused(model)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    float_model = _to_onnx(to_float(bare), args, kwargs, opset)

    got = _run_onnx(content, args, kwargs)
    report = OnnxReport(
        path=Path(path),
        size=len(content),
        float_size=len(float_model.SerializeToString()),
        largest_difference=max((a - b).abs().max().item() for a, b in zip(got, expected, strict=True)),
        largest_output=max(b.abs().max().item() for b in expected),
        agreement=(got[0].flatten(1).argmax(1) == expected[0].flatten(1).argmax(1)).float().mean().item(),
        images=len(expected[0]),
        folded=max(0, sum(type(module) in NORMS.values() for module in qmodel.modules()) - kept),
        kept=kept,
        opset=opset,
        dynamic_batch=bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param),
    )
    error = sum((a - b).square().sum().item() for a, b in zip(got, expected, strict=True))
    if not error <= _DIFFERENT * sum(b.square().sum().item() for b in expected):
        raise ExportError(f"ONNX Runtime gives other outputs than the model, so nothing was written.\n{report}")
    try:
        write_atomically(Path(path), content)
    except OSError as cause:
        raise CheckpointError(f"Cannot write {str(path)!r} ({cause}). Name another file.") from cause
    return report


def _onnx_packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ArgumentError('ONNX is not installed. Write pip install "ghnqat-sdk[onnx]".') from error
    return onnx, onnxruntime


def _arguments(batch: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments, on the CPU."""
    args = () if isinstance(batch, dict) else tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
    kwargs = batch if isinstance(batch, dict) else {}
    values = [*args, *kwargs.values()]
    if not values or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in values):
        raise ArgumentError(
            f"export_onnx got a batch of type {type(batch).__name__}; expected a tensor (N, C, H, W), a tuple of them, "
            f"or a dict. Write export_onnx(qmodel, 'model.onnx', images)."
        )
    return tuple(x.detach().cpu() for x in args), {name: x.detach().cpu() for name, x in kwargs.items()}


def _run(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
    parameter = next(model.parameters())
    try:
        output = model(
            *(x.to(parameter.device) for x in args), **{n: x.to(parameter.device) for n, x in kwargs.items()}
        )
    except Exception as error:  # whatever the user's forward raises
        raise ArgumentError(
            f"The model could not be run on this batch: {type(error).__name__}: {error}. Pass a tensor, a tuple of "
            f"arguments, or a dict of keyword arguments."
        ) from error
    return [tensor.cpu().float() for tensor in tensors_in(output)]


def _run_onnx(content: bytes, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
    _, runtime = _onnx_packages()
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        values = [*args, *kwargs.values()]
        outputs = session.run(None, {name: x.numpy() for name, x in zip(names, values, strict=True)})
    except Exception as error:
        raise ExportError(f"ONNX Runtime refused the exported model: {error}") from error
    return [torch.from_numpy(output).float() for output in outputs]


# From torch to ONNX


class _QuantizedInput(nn.Module):
    """A fake-quantized input in ONNX's own operators."""

    bits = FLOAT_BITS  # as its layer sees it: nothing left to do

    def __init__(self, low: float, high: float, bits: int) -> None:
        super().__init__()
        self.clips = bits < 8
        scale, zero_point = scale_and_zero_point(low, high, bits)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))
        self.register_buffer("lowest", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("highest", torch.tensor(2**bits - 1, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        affine, shape = (self.scale, self.zero_point), x.shape
        levels = _onnx("QuantizeLinear", (x, *affine), dtype=torch.uint8, shape=shape)
        if self.clips:
            levels = _onnx("Clip", (levels, self.lowest, self.highest), dtype=torch.uint8, shape=shape)
        return _onnx("DequantizeLinear", (levels, *affine), dtype=torch.float32, shape=shape)


class _StoredWeight(nn.Module):
    """A weight as integers with one scale and zero point for each entry of its first dimension."""

    bits = FLOAT_BITS

    def __init__(self, weight: Tensor, quantizer: FakeQuantizer) -> None:
        super().__init__()
        low, high = quantizer.range_of(weight)
        scale, zero_point = scale_and_zero_point(low, high, quantizer.bits)
        levels = torch.round(weight.detach().float() * (1.0 / scale)) + zero_point
        self.register_buffer("levels", levels.clamp(0, 2**quantizer.bits - 1).to(torch.uint8))
        self.register_buffer("scale", scale.repeat(len(weight)))
        self.register_buffer("zero_point", zero_point.to(torch.uint8).repeat(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        stored = (self.levels, self.scale, self.zero_point)
        return _onnx("DequantizeLinear", stored, {"axis": 0}, dtype=torch.float32, shape=weight.shape)


def _onnx(op: str, inputs: tuple[Any, ...], attributes: dict[str, Any] | None = None, **facts: Any) -> Tensor:
    return torch.onnx.ops.symbolic(op, inputs, attributes, **facts)


def _with_onnx_quantizers(qmodel: nn.Module) -> nn.Module:
    """The quantizers replaced, in place."""
    for name, layer in require_fake_quantized_layers(qmodel, "export_onnx").items():
        if layer.weight_quantizer.bits != FLOAT_BITS:
            layer.weight_quantizer = _StoredWeight(layer.weight, layer.weight_quantizer)
        if layer.input_quantizer.bits != FLOAT_BITS:
            if layer.input_quantizer.frozen_range is None:
                raise ArgumentError(
                    f"The input of {name!r} has no range: no image reached it while calibrating. Calibrate with images "
                    f"that do, or predict with bits={{{name!r}: (4, 32), '*': (4, 4)}}."
                )
            low, high = layer.input_quantizer.frozen_range
            layer.input_quantizer = _QuantizedInput(low, high, layer.input_quantizer.bits)
    return qmodel


def _to_onnx(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], opset: int) -> Any:
    """A ModelProto without traces of where it was made."""
    # torch.export takes a single row for a constant, which would fix the batch size.
    args = tuple(x if len(x) > 1 else torch.cat([x, x]) for x in args)
    kwargs = {name: x if len(x) > 1 else torch.cat([x, x]) for name, x in kwargs.items()}
    rows = {0: torch.export.Dim.AUTO}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                dynamo=True,
                opset_version=opset,
                verbose=False,
                dynamic_shapes=(*(rows for _ in args),) if args else dict.fromkeys(kwargs, rows),
            )
    except Exception as error:  # whatever the exporter meets in the user's model
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[:1]}"
        raise ArgumentError(
            f"torch.export, and so torch.onnx, cannot take this {type(model).__name__}: {reason}. See to it that "
            f"torch.export.export(qmodel, (images,)) works."
        ) from error
    proto = program.model_proto  # type: ignore[union-attr]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        del part.metadata_props[:]
    return proto


# From ONNX to smaller ONNX


def _separate_constants(model: Any) -> None:
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


def _fold_batch_norms(model: Any) -> None:
    """Fold each batch norm whose input is a layer's output that nothing else reads."""
    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers = Counter([name for node in graph.node for name in node.input] + [each.name for each in graph.output])
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = makers.get(norm.input[0])
        if layer is None or not _takes_fold(layer) or readers[norm.input[0]] > 1:
            continue
        weight = makers.get(layer.input[1])
        stored = weight.input if weight is not None and weight.op_type == "DequantizeLinear" else layer.input[1:2]
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


def _set_biases_apart(model: Any, packed: bool) -> set[str]:
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
        levels = makers.get(makers[name].input[0]) if name in makers and makers[name].input else None
        if levels is None or levels.op_type != "Clip" or makers[name].op_type != "DequantizeLinear":
            return 8
        return int(numpy_helper.to_array(values[levels.input[2]])).bit_length()

    apart, nodes = set(), []
    for node in graph.node:
        nodes.append(node)
        bits = stored_bits(node.input[1]) if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
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


def _pack(model: Any, apart: set[str]) -> None:
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
    return (rows << torch.arange(0, 8, width, dtype=torch.uint8)).sum(1, dtype=torch.uint8).numpy().tobytes()


def _drop_unused(model: Any) -> None:
    """Initializers that nothing reads, and the shapes of values that are gone."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {each.name for each in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
