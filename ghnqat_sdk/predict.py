"""The main job in one call: a model becomes a graph, the graph becomes parameters, the parameters
go into a copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import require_module
from ghnqat_sdk.bits import FLOAT_BITS, Bits, Pair, parse_bits, parse_width, resolve_bits
from ghnqat_sdk.choices import HeadChoice, require_switches
from ghnqat_sdk.deriving import derive_again
from ghnqat_sdk.devices import on_cpu_by_default
from ghnqat_sdk.errors import ArgumentError, RandomHeadWarning, ReplacedWeightsWarning
from ghnqat_sdk.filling import copy_into, copy_with
from ghnqat_sdk.graph.annotate import (
    annotate_bits,
    first_last_layers,
    input_layers,
    prevailing_bits,
)
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import trace_with_call
from ghnqat_sdk.heads import advice_on, calibrate_and_fit, heads_to_keep
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.pretrained import DEFAULT, hypernetwork_of
from ghnqat_sdk.prediction import PredictionReport, keep_report
from ghnqat_sdk.quantization.convert import require_layers, to_fake_quantized, to_float
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import RangeRule, range_rule
from ghnqat_sdk.quantization.state import restored_after_failure
from ghnqat_sdk.quantization.unquantized import note_graph

_FLOAT = Bits(FLOAT_BITS, FLOAT_BITS)


def predict_quantized_params(
    model: nn.Module,
    bits: Pair | Mapping[str, Pair] = (4, 4),
    *,
    first_last_bits: int | None = None,
    ranges: RangeRule | str | None = None,
    hypernetwork: str | Path | GraphHypernetwork = DEFAULT,
    revision: str | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    head: HeadChoice = "auto",
    inplace: bool = False,
) -> nn.Module:
    """A fake-quantized copy of `model` whose parameters come from a hypernetwork (GHN-QAT, Yun &
    Wong 2023).

    The copy has the float model's `state_dict` keys, dtypes, devices, `requires_grad` and mode;
    `model` itself, its buffers and the RNG state are untouched. Evaluate it after `calibrate`, or
    pass `calibration`.

    Args:
        model: Any CNN.
        bits: (weight, activation), each 2 to 8, or 32 for float. Or a mapping from patterns of
            layer names to such pairs, of which the first that matches holds: {"stem*": (8, 8), "*":
            (4, 4)}. The hypernetwork is told the bits of each layer.
        first_last_bits: Of the weights and activations of the first and last layers; else as `bits`
            says.
        ranges: How ranges follow from tensors, by default as in the hypernetwork's training;
            `ClippedRanges(per_channel=True)` gives each output channel of a weight its own.
        hypernetwork: "default" for the weights that ship with the package, a Hub repo id, a local
            folder, or an object.
        revision: Branch, tag or commit of a Hub repo.
        example_inputs: A tensor, a tuple of arguments, or a dict of keyword arguments; needed only
            where shapes cannot be guessed. Only their shapes are used.
        calibration: Batches for `calibrate`, called on the result.
        head: What happens to a classifier whose class count differs from the hypernetwork's: "auto"
            keeps the user's values and warns, "predict" predicts it all the same. "keep" keeps
            every classifier. "fit" calls `fit_head` on the result, for any number of classes, the
            hypernetwork's included; `calibration` then holds (images, labels).
        inplace: Change `model` itself and return it. If the call fails, it is as it was.

    Returns:
        The fake-quantized model; `prediction_report` tells what was predicted.

    Raises:
        ArgumentError: a wrong argument, or a model without a layer to quantize.
        TraceError: the model could not be traced.
        CheckpointError: the hypernetwork could not be loaded.

    Examples:
        >>> import torch, torchvision
        >>> from ghnqat_sdk import calibrate, predict_quantized_params
        >>> model = torchvision.models.resnet18(num_classes=10)
        >>> qmodel = predict_quantized_params(model, bits=(4, 4))
        >>> report = calibrate(qmodel, [torch.randn(64, 3, 32, 32)])
        >>> qmodel.eval()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_arguments(model, head, calibration, first_last_bits, inplace)
    if isinstance(bits, Mapping) or parse_bits(bits) != _FLOAT:  # in float, any model will do
        require_layers(model, "predict_quantized_params")
    by_layer = resolve_bits(bits, quantizable_layers(model))
    ghn = hypernetwork_of(hypernetwork, revision=revision)
    rule = range_rule(ghn.config.ranges if ranges is None else ranges)
    with _plain_tensors():
        graph, call = trace_with_call(model, example_inputs)
        by_layer |= _of_first_and_last(graph, by_layer, first_last_bits)
        graph = _with_bits(graph, by_layer, bits)
        _warn_of_trained_weights(model)
        kept_heads, mismatched = heads_to_keep(graph, ghn.config.num_classes, head)
        kept = {**graph.unreached, **kept_heads, **_not_floating(model)}  # name to reason
        predicted = _predict(ghn, graph, kept)
        result = model if inplace else copy_with(model, predicted)
        guard = _restored_after_failure(model, predicted) if inplace else nullcontext()
        with guard as before:
            names, reasons = copy_into(result, predicted, kept, before)
            derived = derive_again(result, names)  # as spectral norm's weights
            first = input_layers(graph, by_layer)
            state = to_fake_quantized(result, by_layer, rule, inputs=first)
            state.signature = call.signature
            state.normalized = True  # made for normalized images: calibrate warns of others
            note_graph(result, graph, state)
            report = PredictionReport(names, reasons, dict(state.unquantized), derived)
            if calibration is not None:
                fitted = calibrate_and_fit(
                    result, calibration, ghn.config, graph, fit=head == "fit"
                )
                report = report.with_fitted(fitted)
            if head == "auto" and mismatched:  # inside: the warning may be an error
                warnings.warn(advice_on(mismatched), RandomHeadWarning, stacklevel=2)
        keep_report(result, report)
    return result


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Neither inference mode, whose tensors could never be trained, nor autocast, which rounds."""
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def _of_first_and_last(
    graph: ComputationGraph, by_layer: Mapping[str, Bits], first_last_bits: int | None
) -> dict[str, Bits]:
    """Bits of the first and last layers by name, where they are to have others."""
    if first_last_bits is None:
        return {}
    pair = Bits(int(first_last_bits), int(first_last_bits))
    return dict.fromkeys(first_last_layers(graph, by_layer), pair)


def _with_bits(
    graph: ComputationGraph, by_layer: Mapping[str, Bits], bits: Pair | Mapping[str, Pair]
) -> ComputationGraph:
    """The graph with the bits of every node."""
    without_layers = _FLOAT if isinstance(bits, Mapping) else parse_bits(bits)
    return annotate_bits(graph, by_layer, prevailing_bits(graph, by_layer) or without_layers)


@contextmanager
def _restored_after_failure(
    model: nn.Module, predicted: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Where `model` is changed in place: the float model that it was, with its values, if the block
    fails.

    Yields parameters' values by name, for `copy_into` to add those that predicted ones replace.
    """
    parameters = model.named_parameters()
    before = {name: x.detach().clone() for name, x in parameters if name not in predicted}
    with restored_after_failure(model):
        try:
            yield before
        except BaseException:
            to_float(model, inplace=True)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in before:
                        parameter.copy_(before[name])
            raise


def _refuse_expanded(model: nn.Module) -> None:
    """Raise for a parameter that no values can be written into: its entries share memory."""
    for name, parameter in model.named_parameters():
        if any(
            n > 1 and step == 0 for n, step in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            raise ArgumentError(
                f"Entries of {name!r} share memory, as expand() makes them, and a model that is "
                "changed in place keeps its parameters. Write inplace=False, or "
                "nn.Parameter(parameter.detach().clone())."
            )


def _not_floating(model: nn.Module) -> dict[str, str]:
    parameters = model.named_parameters()
    return {n: "not floating-point" for n, p in parameters if not p.is_floating_point()}


def _warn_of_trained_weights(model: nn.Module) -> None:
    """Say that weights are replaced, where running statistics tell that the model was trained."""
    statistics = (getattr(module, "running_mean", None) for module in model.modules())
    if any(isinstance(mean, Tensor) and not mean.is_meta and mean.any() for mean in statistics):
        warnings.warn(
            f"This {type(model).__name__} has been trained, and the prediction replaces its "
            f"weights. To quantize the weights that it has, write "
            f"ghnqat_sdk.from_float(model, bits=(4, 4)).",
            ReplacedWeightsWarning,
            stacklevel=3,
        )


def _check_arguments(
    model: Any, head: Any, calibration: Any, first_last_bits: Any, inplace: bool
) -> None:
    require_module(model, "predict_quantized_params(torchvision.models.resnet18())")
    if first_last_bits is not None:
        parse_width(first_last_bits, "first_last_bits")
    if head not in (known := get_args(HeadChoice)):
        raise ArgumentError(
            f"head={head!r} is unknown. Write head={known[0]!r}, or one of "
            f"{', '.join(map(repr, known[1:]))}."
        )
    if head == "fit" and calibration is None:
        raise ArgumentError(
            "head='fit' needs labelled images. Pass calibration=[(images, labels), ...]."
        )
    require_switches(inplace=inplace)
    if inplace:
        _refuse_expanded(model)
    if fake_quantized_layers(model):
        raise ArgumentError(
            f"This {type(model).__name__} is fake-quantized already. Write "
            "predict_quantized_params(to_float(qmodel)) "
            f"to predict it again."
        )


@torch.no_grad()
def _predict(
    ghn: GraphHypernetwork, graph: ComputationGraph, kept: Mapping[str, str]
) -> dict[str, Tensor]:
    """Predicted tensors by name, but for those that are kept."""
    with on_cpu_by_default():  # numbers of the graph start there
        (predicted,) = ghn([graph], channels_last=False)
    return {name: tensor for name, tensor in predicted.items() if name not in kept}
