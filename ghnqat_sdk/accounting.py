"""What became of a model's parameters and operations: predicted or kept, quantized or float."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from torch import nn

from ghnqat_sdk.errors import ArgumentError, GhnqatError
from ghnqat_sdk.graph.annotate import layer_of
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.quantization.state import QuantizationState

_ATTRIBUTE = "ghnqat_report"
"""Where a predicted model keeps its report."""


@dataclass(frozen=True)
class PredictionReport:
    """Which parameters of a model were predicted; `predicted` and `kept` together are all of them.

    Attributes:
        predicted: Names, in the model's order.
        kept: Name to the reason why the user's value stayed.
        unquantized: Modules that compute with a weight of their own in float, name to reason:
            convolutions by function, attention, recurrent layers, embeddings, layers that no
            operation of the traced run uses. Norms, biases, slopes and what is added or
            concatenated (positions, tokens) are float by design, and are not among them.
        buffers: Those that take part in making a predicted weight (spectral norm's vectors, a
            pruning mask), name to what became of them.
    """

    predicted: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)
    unquantized: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)

    def with_fitted(self, layers: Collection[str]) -> PredictionReport:
        """The same after `fit_head` wrote the classifiers `layers`, predicted or kept before."""
        fitted = {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
        found = [name for name in (*self.predicted, *self.kept) if name in fitted]
        return replace(
            self,
            predicted=tuple(name for name in self.predicted if name not in fitted),
            kept=self.kept | dict.fromkeys(found, "fitted to the labels"),
        )

    def __str__(self) -> str:
        lines = [f"{len(self.predicted)} parameters predicted, {len(self.kept)} kept"]
        lines += [f"  kept {name}: {reason}" for name, reason in self.kept.items()]
        lines += [
            f"  not quantized {name or 'model'}: {reason}"
            for name, reason in self.unquantized.items()
        ]
        lines += [f"  buffer {name}: {what}" for name, what in self.buffers.items()]
        return "\n".join(lines)


def keep_report(qmodel: nn.Module, report: PredictionReport) -> None:
    """Leave a report with the predicted model, and with all copies of it."""
    vars(qmodel)[_ATTRIBUTE] = report


def prediction_report(qmodel: nn.Module) -> PredictionReport:
    """Which parameters of `qmodel` were predicted, and why others were kept; together they are all.

    Of a model that is put together of predicted ones, the names are those in the whole.

    Raises:
        ArgumentError: the model does not come from `predict_quantized_params`.
    """
    parts = _reports(qmodel) if isinstance(qmodel, nn.Module) else {}
    if not parts:
        raise ArgumentError(
            f"This {type(qmodel).__name__} was not made by predict_quantized_params. Write "
            f"qmodel = predict_quantized_params(model); prediction_report(qmodel)."
        )
    if list(parts) == [""]:
        return parts[""]
    names = [name for name, _ in qmodel.named_parameters()]
    predicted = {f"{part}.{n}" for part, report in parts.items() for n in report.predicted}
    kept = {f"{part}.{n}": why for part, report in parts.items() for n, why in report.kept.items()}
    floats = {
        f"{part}.{n}".rstrip("."): why
        for part, report in parts.items()
        for n, why in report.unquantized.items()
    }
    elsewhere = "not part of a predicted model"
    return PredictionReport(
        tuple(name for name in names if name in predicted),
        {name: kept.get(name, elsewhere) for name in names if name not in predicted},
        floats,
    )


def _reports(qmodel: nn.Module) -> dict[str, PredictionReport]:
    """The reports of the predicted models inside, by the name of each."""
    found = ((name, vars(module).get(_ATTRIBUTE)) for name, module in qmodel.named_modules())
    return {name: report for name, report in found if isinstance(report, PredictionReport)}


def left_in_float(graph: ComputationGraph, state: QuantizationState) -> dict[str, str]:
    """Why what computes with a weight is not quantized, by module; the graph says what there is.

    Raises:
        GhnqatError: an operation that could be quantized is run by no fake-quantized layer, and
            nothing says why.
    """
    named = dict(graph.outside) | state.unquantized
    runs = [(node, layer_of(node, state.bits)) for node in graph.nodes]
    lost = [
        node.module or node.op
        for node, layer in runs
        if node.quantized and layer not in state.bits and node.module not in named
    ]
    if lost:
        raise GhnqatError(
            f"Neither fake-quantized nor left in float with a reason: {lost}. This is a bug; "
            "please report it."
        )
    used = {layer for node, layer in runs if node.quantized or node.parameters}
    unused = [name for name in state.bits if name not in used and name not in named]
    return named | dict.fromkeys(unused, "no operation of the traced run uses it")
