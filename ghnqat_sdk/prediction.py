"""What became of a model's parameters and operations: predicted or kept, quantized or float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.refusals import refuse_wrapped
from ghnqat_sdk.quantization.lookup import fake_quantized_layers

_ATTRIBUTE = "ghnqat_report"
"""Where a predicted model keeps its report."""
_MARK = "ghnqat_predicted"
"""Attribute of the modules that were there at the prediction."""
_ADDED = "put in after the prediction"
FITTED = "fitted to the labels"


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
        removed: Parameters that were there at the prediction and no longer are.
    """

    predicted: tuple[str, ...]
    kept: dict[str, str] = field(default_factory=dict)
    unquantized: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def with_fitted(self, layers: Collection[str]) -> PredictionReport:
        """The same after `fit_head` wrote the classifiers `layers`, predicted or kept before."""
        starts = [f"{layer}." if layer else "" for layer in layers]
        fitted = {start + what for start in starts for what in ("weight", "bias")}
        found = [name for name in (*self.predicted, *self.kept) if name in fitted]
        return replace(
            self,
            predicted=tuple(name for name in self.predicted if name not in fitted),
            kept=self.kept | dict.fromkeys(found, FITTED),
        )

    def __str__(self) -> str:
        lines = [f"{len(self.predicted)} parameters predicted, {len(self.kept)} kept"]
        lines += [f"  kept {name}: {reason}" for name, reason in self.kept.items()]
        lines += [
            f"  not quantized {name or 'model'}: {reason}"
            for name, reason in self.unquantized.items()
        ]
        lines += [f"  buffer {name}: {what}" for name, what in self.buffers.items()]
        lines += [f"  removed {name}" for name in self.removed]
        return "\n".join(lines)


def keep_report(qmodel: nn.Module, report: PredictionReport) -> None:
    """Leave a report with the predicted model, and with all copies of it; its modules are marked as
    those that the report is about."""
    for module in qmodel.modules():
        vars(module).pop(_ATTRIBUTE, None)
        vars(module)[_MARK] = True
    vars(qmodel)[_ATTRIBUTE] = report


def note_fitted(qmodel: nn.Module, layers: Collection[str]) -> None:
    """Let the reports of a model, or of its parts, say that the classifiers `layers` were
    fitted."""
    for part, report in _reports(qmodel).items():
        start = f"{part}." if part else ""
        inside = [name.removeprefix(start) for name in layers if name.startswith(start)]
        inside += [""] if part and part in layers else []
        vars(qmodel.get_submodule(part))[_ATTRIBUTE] = report.with_fitted(inside)


def prediction_report(qmodel: nn.Module) -> PredictionReport:
    """Which parameters of `qmodel` were predicted, and why others were kept; together they are all.

    The report is of the model as it is: modules that were put in after the prediction are told from
    those that they replace. Of a model that is put together of predicted ones, the names are those
    in the whole.

    Raises:
        ArgumentError: the model does not come from `predict_quantized_params`, or is wrapped or
            compiled.
    """
    if isinstance(qmodel, nn.Module):
        refuse_wrapped(qmodel, ArgumentError)
    parts = _reports(qmodel) if isinstance(qmodel, nn.Module) else {}
    if not parts:
        raise ArgumentError(
            f"This {type(qmodel).__name__} was not made by predict_quantized_params. Write "
            f"qmodel = predict_quantized_params(model); prediction_report(qmodel)."
        )
    whole = _joined(parts)
    modules = dict(qmodel.named_modules(remove_duplicate=False))
    marked = {name for name, module in modules.items() if _MARK in vars(module)}
    names = dict.fromkeys(name for name, _ in qmodel.named_parameters())
    there = [name for name in names if name.rpartition(".")[0] in marked]
    predicted = {*there}.intersection(whole.predicted)
    known = {name: whole.kept[name] for name in there if name in whole.kept}
    kept = {n: known.get(n) or _why_unknown(n, parts) for n in names if n not in predicted}
    added = quantizable_layers(qmodel).keys() - fake_quantized_layers(qmodel).keys() - marked
    floats = {name: why for name, why in whole.unquantized.items() if name in marked}
    floats |= {n: _ADDED for n in modules if n in added and _why_unknown(n, parts) == _ADDED}
    buffers = {name for name, _ in qmodel.named_buffers() if name.rpartition(".")[0] in marked}
    return PredictionReport(
        tuple(name for name in names if name in predicted),
        kept,
        floats,
        {name: what for name, what in whole.buffers.items() if name in buffers},
        tuple(name for name in (*whole.predicted, *whole.kept) if name not in names),
    )


def _joined(parts: Mapping[str, PredictionReport]) -> PredictionReport:
    """The reports of parts as one, with names in the whole; what an inner part says holds."""
    predicted: dict[str, None] = {}
    kept: dict[str, str] = {}
    floats: dict[str, str] = {}
    buffers: dict[str, str] = {}
    for part, report in parts.items():  # outer ones come first
        start = f"{part}." if part else ""
        for told in (predicted, kept, floats, buffers):
            inside = [name for name in told if name.startswith(start) or name == part]
            for name in inside:
                del told[name]
        predicted |= dict.fromkeys(start + name for name in report.predicted)
        kept |= {start + name: why for name, why in report.kept.items()}
        floats |= {(start + name).rstrip("."): why for name, why in report.unquantized.items()}
        buffers |= {start + name: what for name, what in report.buffers.items()}
    return PredictionReport(tuple(predicted), kept, floats, buffers)


def _why_unknown(name: str, parts: Mapping[str, PredictionReport]) -> str:
    """Of a parameter or a layer that no report is about."""
    inside = any(not part or name.startswith(f"{part}.") for part in parts)
    return _ADDED if inside else "not part of a predicted model"


def _reports(qmodel: nn.Module) -> dict[str, PredictionReport]:
    """The reports of the predicted models inside, by the name of each."""
    found = ((name, vars(module).get(_ATTRIBUTE)) for name, module in qmodel.named_modules())
    return {name: report for name, report in found if isinstance(report, PredictionReport)}
