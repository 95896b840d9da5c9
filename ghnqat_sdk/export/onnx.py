"""A calibrated model as an ONNX file with integer weights, checked against ONNX Runtime."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError, CheckpointError, ExportError
from ghnqat_sdk.export.onnx_graph import (
    drop_unused,
    fold_batch_norms,
    pack,
    separate_constants,
    set_biases_apart,
)
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.qat import fix_steps
from ghnqat_sdk.quantization.convert import to_float
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.layers import (
    fake_quantized_layers,
    fixed_input_range,
    require_calibrated_layers,
)
from ghnqat_sdk.quantization.norms import calibrated_norms
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.quantization.report import outputs_on
from ghnqat_sdk.quantization.state import evaluating

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


def export_onnx(
    qmodel: nn.Module, path: str | Path, batch: Any, *, packed: bool = False
) -> OnnxReport:
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
    layers = require_calibrated_layers(qmodel, "export_onnx")
    first = next(iter(layers.values()))
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix != ".onnx":
        raise ArgumentError(
            f"path={path!r} does not end in .onnx. Write export_onnx(qmodel, 'model.onnx', batch)."
        )
    args, kwargs = _arguments(batch)
    device = first.weight.device
    on_device = {name: x.to(device) for name, x in kwargs.items()} or tuple(
        x.to(device) for x in args
    )
    with evaluating(qmodel), torch.no_grad():
        expected = [tensor.cpu().float() for tensor in outputs_on(qmodel, on_device)]

    bare = fix_steps(qmodel).cpu().eval()
    opset = (
        _OPSET_2_BITS
        if packed and any(x.weight_quantizer.bits == 2 for x in layers.values())
        else _OPSET
    )
    model = _to_onnx(_with_onnx_quantizers(copy.deepcopy(bare)), args, kwargs, opset)
    separate_constants(model)
    fold_batch_norms(model)
    kept = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    apart = set_biases_apart(model, packed)
    if packed:
        pack(model, apart if opset == _OPSET_2_BITS else set())
    drop_unused(model)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    float_model = _to_onnx(to_float(bare, inplace=True), args, kwargs, opset)

    got = _run_onnx(content, args, kwargs)
    report = OnnxReport(
        path=Path(path),
        size=len(content),
        float_size=len(float_model.SerializeToString()),
        largest_difference=max(
            (a - b).abs().max().item() for a, b in zip(got, expected, strict=True)
        ),
        largest_output=max(b.abs().max().item() for b in expected),
        agreement=(got[0].flatten(1).argmax(1) == expected[0].flatten(1).argmax(1))
        .float()
        .mean()
        .item(),
        images=len(expected[0]),
        folded=max(0, len(calibrated_norms(qmodel)) - kept),
        kept=kept,
        opset=opset,
        dynamic_batch=bool(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param),
    )
    error = sum((a - b).square().sum().item() for a, b in zip(got, expected, strict=True))
    if not error <= _DIFFERENT * sum(b.square().sum().item() for b in expected):
        raise ExportError(
            f"ONNX Runtime gives other outputs than the model, so nothing was written.\n{report}"
        )
    try:
        write_atomically(Path(path), content)
    except OSError as cause:
        raise CheckpointError(
            f"Cannot write {str(path)!r} ({cause}). Name another file."
        ) from cause
    return report


def _onnx_packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ArgumentError(
            'ONNX is not installed. Write pip install "ghnqat-sdk[onnx]".'
        ) from error
    return onnx, onnxruntime


def _arguments(batch: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments, on the CPU."""
    args = (
        ()
        if isinstance(batch, dict)
        else tuple(batch)
        if isinstance(batch, (tuple, list))
        else (batch,)
    )
    kwargs = batch if isinstance(batch, dict) else {}
    values = [*args, *kwargs.values()]
    if not values or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in values):
        raise ArgumentError(
            f"export_onnx got a batch of type {type(batch).__name__}; expected a tensor (N, C, H, W), a tuple of them, "
            f"or a dict. Write export_onnx(qmodel, 'model.onnx', images)."
        )
    return tuple(x.detach().cpu() for x in args), {
        name: x.detach().cpu() for name, x in kwargs.items()
    }


def _run_onnx(content: bytes, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> list[Tensor]:
    _, runtime = _onnx_packages()
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        values = [*args, *kwargs.values()]
        outputs = session.run(
            None, {name: x.numpy() for name, x in zip(names, values, strict=True)}
        )
    except Exception as error:
        raise ExportError(f"ONNX Runtime refused the exported model: {error}") from error
    return [torch.from_numpy(output).float() for output in outputs]


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
            levels = _onnx(
                "Clip", (levels, self.lowest, self.highest), dtype=torch.uint8, shape=shape
            )
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
        return _onnx(
            "DequantizeLinear", stored, {"axis": 0}, dtype=torch.float32, shape=weight.shape
        )


def _onnx(
    op: str, inputs: tuple[Any, ...], attributes: dict[str, Any] | None = None, **facts: Any
) -> Tensor:
    return torch.onnx.ops.symbolic(op, inputs, attributes, **facts)


def _with_onnx_quantizers(qmodel: nn.Module) -> nn.Module:
    """The quantizers replaced, in place."""
    for name, layer in fake_quantized_layers(qmodel).items():
        if layer.weight_quantizer.bits != FLOAT_BITS:
            layer.weight_quantizer = _StoredWeight(layer.weight, layer.weight_quantizer)
        if layer.input_quantizer.bits != FLOAT_BITS:
            low, high = fixed_input_range(name, layer)
            layer.input_quantizer = _QuantizedInput(low, high, layer.input_quantizer.bits)
    return qmodel


def _to_onnx(
    model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], opset: int
) -> Any:
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
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise ArgumentError(
            f"torch.export, and so torch.onnx, cannot take this {type(model).__name__}: {reason}. See to it that "
            f"torch.export.export(qmodel, (images,)) works."
        ) from error
    proto = program.model_proto  # type: ignore[union-attr]
    for part in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.initializer,
        *proto.graph.value_info,
    ):
        del part.metadata_props[:]
    return proto
