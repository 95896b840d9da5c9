"""What quantization does to each layer of a model, measured on one batch, and what it leaves in
float."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.calls import Call
from ghnqat_sdk.files import as_json
from ghnqat_sdk.plotting import figure_class, save_figure
from ghnqat_sdk.quantization.added import in_float
from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.lookup import all_in_float, layer_at, require_fake_quantized_layers
from ghnqat_sdk.quantization.outputs import finite_run_on, output_difference, run_on
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.quantization.state import evaluating, signature_of, uncompiled


@dataclass(frozen=True)
class TensorReport:
    """One tensor on its way through a fake-quantizer.

    Attributes:
        bits: Its bit-width.
        low, high: The range that it is quantized with; the widest where each channel has one.
        scale: Step between two levels.
        zero_point: Level of 0.
        clipped: Share of its values beyond the outermost levels, from 0 to 1.
        sqnr: Signal-to-quantization-noise ratio in dB; infinite without noise.
    """

    bits: int
    low: float
    high: float
    scale: float
    zero_point: int
    clipped: float
    sqnr: float


@dataclass(frozen=True)
class LayerReport:
    """One fake-quantized layer.

    Attributes:
        name: Of the module.
        weight, activation: Its weight and its input; None where they are float.
        output_error: Mean squared change of the model's output when this layer alone is quantized,
            relative to the output's mean square.
    """

    name: str
    weight: TensorReport | None
    activation: TensorReport | None
    output_error: float


@dataclass(frozen=True)
class QuantizationReport:
    """All fake-quantized layers that a batch reached, in the model's order; printed as a table.

    Attributes:
        layers: One report each.
        output_error: As a layer's, with the whole model quantized.
        unquantized: Modules that compute with a weight in float, name to reason, as far as the
            model's classes and its graph tell; those that were put in later as well.
    """

    layers: tuple[LayerReport, ...]
    output_error: float
    unquantized: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The report for machines; ratios that are infinite are null."""
        return as_json(asdict(self), indent=2)

    def plot(self, path: str | Path) -> None:
        """Draw the layers' noise ratios and their part in the output error as an image (needs
        matplotlib).

        Raises:
            ArgumentError: matplotlib is not installed, or the file cannot be written.
        """
        figure = figure_class()(figsize=(8, 1.5 + 0.25 * len(self.layers)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        names, places = [layer.name for layer in self.layers], range(len(self.layers))
        for kind, offset in (("weight", -0.2), ("activation", 0.2)):
            ratios = [
                min(getattr(layer, kind).sqnr, 60.0) if getattr(layer, kind) else 0.0
                for layer in self.layers
            ]
            left.barh([place + offset for place in places], ratios, 0.4, label=kind)
        left.set_yticks(list(places), names)
        left.invert_yaxis()
        left.set_xlabel("SQNR, dB")
        left.legend()
        right.barh(
            list(places), [100 * layer.output_error for layer in self.layers], color="tab:red"
        )
        right.set_xlabel("error of the output, %")
        save_figure(figure, path, "report.plot('report.png')")

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        columns = f"{'bits':>4} {'range':^21} {'scale':>9} {'zero':>4} {'clipped':>7} {'dB':>5}"
        lines = [f"{'layer':{width}} {'':10} {columns} {'output error':>12}"]
        for layer in self.layers:
            for kind in ("weight", "activation"):
                name, error = (
                    (layer.name, f"{100 * layer.output_error:10.2f} %")
                    if kind == "weight"
                    else ("", "")
                )
                lines.append(
                    f"{name:{width}} {kind:10} {_cells(getattr(layer, kind))} {error}".rstrip()
                )
        lines.append(f"all layers: {100 * self.output_error:.2f} % of the output")
        lines += [f"not quantized {n or 'model'}: {why}" for n, why in self.unquantized.items()]
        return "\n".join(lines)


def _cells(tensor: TensorReport | None) -> str:
    if tensor is None:
        return f"{'32':>4} {'':21} {'':>9} {'':>4} {'':>7} {'':>5}"
    t = tensor
    span = f"{t.low:10.4g} {t.high:10.4g}"
    return (
        f"{t.bits:4} {span} {t.scale:9.3g} {t.zero_point:4} {100 * t.clipped:5.1f} % {t.sqnr:5.1f}"
    )


@torch.no_grad()
def quantization_report(qmodel: nn.Module, batch: Any) -> QuantizationReport:
    """Measure what quantization costs, layer by layer, in evaluation mode; the model stays as it
    is.

    The model runs once for each layer and twice more. A layer that is called several times is
    measured over all of its calls.

    Args:
        qmodel: From `predict_quantized_params` or `from_float`; calibrated or not.
        batch: A tensor (N, C, H, W), a tuple of arguments, or a dict as for `calibrate`.

    Raises:
        ArgumentError: the model has no fake-quantized layer, is wrapped or compiled, or cannot be
            run on the batch.
    """
    layers = require_fake_quantized_layers(qmodel, "quantization_report")
    named = isinstance(batch, Mapping)
    call = Call.of_batch(batch, signature_of(qmodel)) if named else Call.of(batch)
    inputs: dict[str, list[Tensor]] = {}
    weights: dict[str, list[Tensor]] = {}
    with evaluating(qmodel), uncompiled():
        with (
            _seeing({n: layer.input_quantizer for n, layer in layers.items()}, inputs),
            _seeing({n: layer.weight_quantizer for n, layer in layers.items()}, weights),
        ):
            quantized = finite_run_on(qmodel, call)
        tensors = {
            name: (
                _measure(layer.weight_quantizer, weights[name]),
                _measure(layer.input_quantizer, inputs[name]),
            )
            for name, layer in layers.items()
            if name in inputs
        }
        with all_in_float(layers):
            exact = finite_run_on(qmodel, call)
            errors = {}
            for name in tensors:
                with layer_at(layers[name], *(t.bits if t else FLOAT_BITS for t in tensors[name])):
                    errors[name] = output_difference(run_on(qmodel, call), exact)
    reports = (LayerReport(name, *tensors[name], errors[name]) for name in tensors)
    error = output_difference(quantized, exact)
    return QuantizationReport(tuple(reports), error, in_float(qmodel))


@contextmanager
def _seeing(quantizers: dict[str, Any], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Every tensor that comes to quantizers, by name; one that comes again is taken once."""

    def take(name: str, x: Tensor) -> None:
        taken = seen.setdefault(name, [])
        if not any(x is each for each in taken):
            taken.append(x)

    try:
        for name, quantizer in quantizers.items():
            quantizer.observe = partial(take, name)
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observe = None


def _measure(quantizer: FakeQuantizer, calls: list[Tensor]) -> TensorReport | None:
    """What happens to the tensors of all calls; range, scale and zero point of the widest."""
    if quantizer.bits == FLOAT_BITS:
        return None
    ends = [quantizer.range_of(x) for x in calls]
    outside = signal = noise = 0.0
    for x, (low, high) in zip(calls, ends, strict=True):
        step, zero = (n.to(x.device) for n in scale_and_zero_point(low, high, quantizer.bits))
        top = 2**quantizer.bits - 1 - zero
        outside += ((x < (-zero - 0.5) * step) | (x > (top + 0.5) * step)).sum().item()
        rounded = quantizer.rounding.quantize(x, low, high, quantizer.bits)
        noise += (rounded - x).double().square().sum().item()
        signal += x.double().square().sum().item()
    single = [pair for low, high in ends for pair in zip(_listed(low), _listed(high), strict=True)]
    low, high = max(single, key=lambda pair: pair[1] - pair[0])
    scale, zero_point = (n.item() for n in scale_and_zero_point(low, high, quantizer.bits))
    return TensorReport(
        bits=quantizer.bits,
        low=low,
        high=high,
        scale=scale,
        zero_point=round(zero_point),
        clipped=outside / sum(x.numel() for x in calls),
        sqnr=10 * math.log10(signal / noise) if noise and signal else math.inf,
    )


def _listed(end: Tensor | float) -> list[float]:
    """An end of a range, or of the ranges of all channels."""
    return end.double().flatten().tolist() if isinstance(end, Tensor) else [float(end)]
