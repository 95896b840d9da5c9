"""A calibrated model as an ONNX file that ONNX Runtime runs in integers, checked against ONNX
Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.choices import require_switches
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.devices import on_cpu_by_default
from ghnqat_sdk.errors import CheckpointError, ExportError
from ghnqat_sdk.export.arguments import (
    Storage,
    arguments_on_cpu,
    bits_of_packed,
    checked_edges,
    checked_opset,
    checked_path,
    require_float32,
    require_images_like,
    require_narrow,
)
from ghnqat_sdk.export.edges import Edges, plan_edges
from ghnqat_sdk.export.facts import write_facts
from ghnqat_sdk.export.integer import (
    expand,
    finish_layers,
    quantize_edges,
)
from ghnqat_sdk.export.integer_nodes import take_out_quantizers
from ghnqat_sdk.export.layers import require_exportable_layers
from ghnqat_sdk.export.norms import CONVOLUTION, norms_as_convolutions
from ghnqat_sdk.export.onnx_graph import (
    Graph,
    float_twin,
    fold_batch_norms,
    rename_values,
    separate_constants,
    shorten_names,
)
from ghnqat_sdk.export.program import Inputs, require_ranges, to_onnx, with_onnx_quantizers
from ghnqat_sdk.export.report import Agreement, OnnxReport, Packing, Roundings
from ghnqat_sdk.export.runtime import (
    integer_layers,
    milliseconds,
    packages,
    require_opset,
    require_valid,
    runner,
)
from ghnqat_sdk.export.sizes import Probes
from ghnqat_sdk.export.storage import pack
from ghnqat_sdk.export.weights import count_layers, transpose_stored_weights
from ghnqat_sdk.files import write_atomically
from ghnqat_sdk.generators import other_random_numbers
from ghnqat_sdk.qat import fix_steps
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.outputs import outputs_on
from ghnqat_sdk.quantization.state import evaluating


def export_onnx(
    qmodel: nn.Module,
    path: str | Path,
    batch: Any,
    *,
    storage: Storage = "int8",
    float_edges: Sequence[str] = (),
    images: ImageSet | None = None,
    opset: int | None = None,
    timing: bool = False,
) -> OnnxReport:
    """Write a calibrated model as ONNX and run it in ONNX Runtime.

    Layers with 8-bit activations run in integers: weights are stored as signed bytes, batch norms
    become part of their scales, ReLU and ReLU6 part of the ranges, and every value between layers
    passes QuantizeLinear and DequantizeLinear once (QDQ). Values that training leaves in float
    (sums, products, what is pooled) get the smallest and the largest value on the batch for a
    range. Layers with fewer activation bits are simulated in float, exactly: a Clip lies between
    their QuantizeLinear and DequantizeLinear (QCDQ, Pappalardo et al. 2022).

    Args:
        qmodel: From `predict_quantized_params` or `from_float`, calibrated; stays as it is.
        path: File to write, ending in .onnx.
        batch: A tensor (N, C, H, W), a tuple of arguments, or a dict of keyword arguments, to
            export, choose ranges and check with: some hundred calibration images.
        storage: "int8"; "int4" packs weights of up to 4 bits two to a byte, and "int2" those of 2
            bits four to a byte (opset 25), if they have 512 values at least. The runtime makes
            signed bytes of them when it loads the file.
        float_edges: Values that shall stay float but for layers, which round and clip what they
            read, by name or pattern; `report.edges` has the names.
        images: Images like those that the model is for: their size, statistics and classes are
            written into the file.
        opset: Of ONNX; by default the lowest that holds the model.
        timing: Measure the time of one image as well.

    Raises:
        ArgumentError: the model is not calibrated, rounds other than to the nearest level, cannot
            be run on the batch or exported, an argument is wrong, or ONNX is not installed.
        CheckpointError: the file cannot be written.
        ExportError: ONNX Runtime refuses the model or gives other outputs; the file is not written.
    """
    require_switches(timing=timing)
    packages()
    layers = require_exportable_layers(qmodel, "export_onnx")
    target = checked_path(path)
    opset = checked_opset(storage, opset, layers)
    float_edges = checked_edges(float_edges)
    require_opset(opset)
    require_narrow(storage, layers)
    narrowest = bits_of_packed(storage, opset)
    inputs = arguments_on_cpu(batch)
    expected = _outputs_of(qmodel, inputs)
    require_images_like(images, inputs, expected)
    bare = fix_steps(qmodel).cpu().eval()
    require_float32(bare, inputs)
    require_ranges(bare, inputs)
    _require_repeatable(qmodel, bare, inputs, expected)
    values = [*inputs.values()] if isinstance(inputs, dict) else [*inputs]
    with on_cpu_by_default():
        probes = Probes(bare, inputs)
        proto, norms = to_onnx(with_onnx_quantizers(bare, inputs), inputs, opset, probes)
        made = _integer_form(Graph(proto), norms, values, narrowest, float_edges)
        write_facts(made.graph, values, expected, images)
        report = _checked(made, target, values, expected, opset, timing)
    _write(target, made.content)
    return report


@dataclass
class _Made:
    """A graph in its last form, and what became of it on the way."""

    graph: Graph
    float_content: bytes
    edges: Edges
    roundings: Roundings
    packing: Packing
    folded: int
    kept: int
    convolutions: int
    stored: int
    in_float: int

    @property
    def content(self) -> bytes:
        return self.graph.model.SerializeToString()


def _integer_form(
    graph: Graph,
    norms: int,
    values: list[Tensor],
    narrowest: int,
    float_edges: Sequence[str],
) -> _Made:
    """What torch exported, changed step by step into what the runtime takes best."""
    rename_values(graph)
    separate_constants(graph)
    fold_batch_norms(graph)
    kept = graph.count("BatchNormalization")
    twin = float_twin(graph)
    expand(graph)
    transpose_stored_weights(graph)
    given = take_out_quantizers(graph)
    edges = plan_edges(graph, given, values, float_edges)
    convolutions, layers = graph.count("Conv"), count_layers(graph)
    norms_as_convolutions(graph, edges.nodes)
    quantize_edges(graph, edges)
    roundings = finish_layers(graph, given.coarse)
    packing = pack(graph, narrowest) if narrowest < 8 else Packing()
    graph.store()
    shorten_names(graph, edges.ranges)
    graph.model.graph.ClearField("value_info")  # shapes that a runtime finds by itself
    return _Made(graph, twin, edges, roundings, packing, norms - kept, kept, convolutions, *layers)


def _checked(
    made: _Made,
    path: Path,
    values: list[Tensor],
    expected: list[Tensor],
    opset: int,
    timing: bool,
) -> OnnxReport:
    """What ONNX Runtime makes of the graph.

    Raises:
        ExportError: it refuses it, or gives other outputs.
    """
    require_valid(made.graph.model)
    content = made.content
    agreement = Agreement.of(runner(content)(values), expected)
    times = _times(made, values) if timing else None
    convolutions, products = integer_layers(content, CONVOLUTION)
    report = OnnxReport(
        path=path,
        size=len(content),
        float_size=len(made.float_content),
        agreement=agreement,
        convolutions=made.convolutions,
        integer_convolutions=convolutions,
        simulated=max(0, made.stored - convolutions - products),
        in_float=made.in_float,
        folded=made.folded,
        kept=made.kept,
        edges=made.edges.ranges,
        roundings=made.roundings,
        packing=made.packing,
        opset=opset,
        dynamic=made.graph.dynamic(),
        milliseconds=times,
    )
    if not agreement.close:
        raise ExportError(
            "ONNX Runtime gives other outputs than the model, so nothing was written. Pass more "
            f"images, or keep values in float: float_edges=['*'] keeps all.\n{report}"
        )
    return report


def _times(made: _Made, values: list[Tensor]) -> tuple[float, float]:
    """Milliseconds for one row, in float and as made; where the batch size is fixed, its share of
    the batch."""
    rows = 1 if "batch" in made.graph.dynamic() else len(values[0])
    several = [x[:rows].contiguous() for x in values]
    before, after = milliseconds([made.float_content, made.content], several)
    return before / rows, after / rows


def _require_repeatable(
    qmodel: nn.Module, bare: nn.Module, inputs: Inputs, expected: list[Tensor]
) -> None:
    """Raise where a second evaluation gives other outputs, which no file can agree with.

    Kernels of a GPU may add in another order each time; those of `bare`, on the CPU, do not.

    Raises:
        ExportError: so it is.
    """
    if not _is_repeated(qmodel, inputs, expected) and not _is_repeated(
        bare, inputs, _outputs_of(bare, inputs)
    ):
        raise ExportError(
            f"This {type(qmodel).__name__} gives other outputs each time that it is evaluated, as "
            "one with random numbers does, so no file can be checked and nothing was written. See "
            "to it that qmodel.eval() leaves nothing random: F.dropout(x, p, self.training)."
        )


def _is_repeated(model: nn.Module, inputs: Inputs, expected: list[Tensor]) -> bool:
    """Whether an evaluation with other random numbers gives the same, NaN included."""
    with other_random_numbers(_device_of(model)):
        again = _outputs_of(model, inputs)
    if [x.shape for x in again] != [x.shape for x in expected]:
        return False
    pairs = zip(again, expected, strict=True)
    return all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs)


def _device_of(qmodel: nn.Module) -> torch.device:
    return next(iter(fake_quantized_layers(qmodel).values())).weight.device


def _outputs_of(qmodel: nn.Module, inputs: Inputs) -> list[Tensor]:
    device = _device_of(qmodel)
    if isinstance(inputs, dict):
        there: Any = {name: x.to(device) for name, x in inputs.items()}
    else:
        there = tuple(x.to(device) for x in inputs)
    with evaluating(qmodel), torch.no_grad():
        return [tensor.cpu().float() for tensor in outputs_on(qmodel, there)]


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as cause:
        raise CheckpointError(
            f"Cannot write {str(path)!r} ({cause}). Name another file."
        ) from cause
