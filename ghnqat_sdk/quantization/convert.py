"""Model to fake-quantized model and back, with the `state_dict` keys of the float model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from ghnqat_sdk.advice import require_module
from ghnqat_sdk.bits import Bits, Pair, resolve_bits
from ghnqat_sdk.calls import Call
from ghnqat_sdk.choices import require_switches
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError, TraceError, UntracedWarning
from ghnqat_sdk.graph.annotate import input_layers
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.ops import BY_NAME, op_of
from ghnqat_sdk.graph.refusals import QUANTIZERS, refuse_hidden, refuse_wrapped, why_shapeless
from ghnqat_sdk.graph.trace import trace_with_call
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.classes import CHANGED, MEMBERS, change_class, float_class
from ghnqat_sdk.quantization.lookup import all_in_float, fake_quantized_layers
from ghnqat_sdk.quantization.norms import is_norm
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.ranges import ClippedRanges, Kind, RangeRule, range_rule
from ghnqat_sdk.quantization.roundings import NEAREST, RoundingRule, rounding_rule
from ghnqat_sdk.quantization.state import QuantizationState
from ghnqat_sdk.quantization.unquantized import has_statistics, note_graph, why_not

_TRANSPOSED = BY_NAME["transposed_conv"]
"""Its weight (I, O, ...) has no rows for its output channels: it keeps one range."""
_FUSING = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def to_fake_quantized(
    model: nn.Module,
    bits: Pair | Mapping[str, Pair],
    ranges: RangeRule,
    *,
    rounding: RoundingRule = NEAREST,
    inputs: Collection[str] = (),
    skipped: Collection[str] = (),
    warn: bool = True,
) -> QuantizationState:
    """Make every convolution and linear layer of `model` fake-quantized, in place.

    Layers change class and keep everything else (parameters, hooks, names, identity), so
    `state_dict` keys stay; a class derived from torch's own stays a base of the new one.

    Args:
        model: Any model; modules of other types are left alone.
        bits: (weight, activation), or one such pair for each layer by its name.
        ranges: Rule that gives a tensor's range; transposed convolutions keep one for the weight
            where others have one for each channel.
        rounding: How values come to the levels of a range.
        inputs: Layers that read the model's inputs, for which rules have a kind of their own.
        skipped: Layers that stay as they are.
        warn: Whether an evaluation before calibration is pointed out.

    Returns:
        The state that all the layers share.
    """
    state = QuantizationState(warn=warn, warn_unreached=warn)
    layers = {n: x for n, x in quantizable_layers(model).items() if n not in skipped}
    for name, module in model.named_modules():
        reason = why_not(module, name in layers)
        if reason is not None:
            state.unquantized[name] = reason
            if has_statistics(module):
                state.stale[name] = reason
            continue
        if name in layers or is_norm(module) or isinstance(module, _FUSING):
            change_class(module, state)
        if name in layers:
            weight_bits, input_bits = bits[name] if isinstance(bits, Mapping) else bits
            kind: Kind = "input" if name in inputs else "activation"
            of_input = FakeQuantizer(input_bits, kind, ranges, rounding)
            rule = ranges.tensorwise() if op_of(module) is _TRANSPOSED else ranges
            of_weight = FakeQuantizer(weight_bits, "weight", rule, rounding)
            _put(module, "input_quantizer", of_input)
            _put(module, "weight_quantizer", of_weight)
            state.bits[name] = Bits(weight_bits, input_bits)
    return state


def require_layers(model: nn.Module, caller: str) -> None:
    """Raise where `model` has no layer that can be fake-quantized.

    Raises:
        ArgumentError: the message names `caller`, and what the model has.
    """
    refuse_hidden(model)
    if quantizable_layers(model):
        return
    weighted = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    kinds = dict.fromkeys(type(module).__name__ for module in weighted)
    found = f"parameters in {', '.join(kinds)} alone" if kinds else "no parameters"
    raise ArgumentError(
        f"{caller} needs a model that calls convolutions or linear layers; this "
        f"{type(model).__name__} has {found}. Write layers such as nn.Conv2d(3, 8, 3) in place of "
        "F.conv2d(x, weight), and leave the forward of a layer to its class."
    )


def _put(module: nn.Module, name: str, quantizer: FakeQuantizer) -> None:
    """A part of a layer, in the layer's mode."""
    module._modules[name] = quantizer.train(module.training)


def from_float(
    model: nn.Module,
    bits: Any = (4, 4),
    *,
    ranges: RangeRule | str | None = None,
    rounding: RoundingRule | str = NEAREST,
    example_inputs: Any = None,
    inplace: bool = False,
) -> nn.Module:
    """A fake-quantized copy of a float model with its own weights: QAT without a prediction.

    `to_float` leads back. Batch norm uses batch statistics until `calibrate`, as in a predicted
    model. Layers that read the model's inputs, for which range rules have a kind of their own, are
    found by `trace`; where inputs of a usual shape do not suit the model, they count as the others,
    and an `UntracedWarning` says so. `quantization_report` tells what is left in float.

    Args:
        model: With torch's own layers, or classes derived from them.
        bits: As in `predict_quantized_params`: a (weight, activation) pair, or a mapping from
            patterns of layer names to pairs.
        ranges: How ranges follow from tensors: `ClippedRanges`, as the weights that ship have it,
            "min-max", or a `CustomRanges` that names a class of your own.
            `ClippedRanges(per_channel=True)` gives each output channel of a weight its own.
        rounding: How values come to the levels of a range: "nearest", "noise" (NoiseQuant), or a
            `CustomRounding`.
        example_inputs: As in `predict_quantized_params`.
        inplace: Change `model` itself and return it.

    Raises:
        ArgumentError: no float model, bits, ranges or rounding that are none, or a model that
            cannot be copied or has a lazy module that has not run yet.
        TraceError: example inputs that the model cannot be run on, or a wrapped or compiled model.
    """
    require_module(model, "from_float(model)")
    require_switches(inplace=inplace)
    refuse_wrapped(model)
    if fake_quantized_layers(model):
        raise ArgumentError(
            f"from_float needs a float model; this {type(model).__name__} is fake-quantized "
            "already. Write from_float(to_float(qmodel)) to quantize it again."
        )
    require_layers(model, "from_float")
    if shapeless := why_shapeless(model):
        raise ArgumentError(shapeless)
    resolved = resolve_bits(bits, list(quantizable_layers(model)))
    rule = ClippedRanges() if ranges is None else range_rule(ranges)
    rounding = rounding_rule(rounding)
    traced = _traced(model, example_inputs)
    inputs = set() if traced is None else input_layers(traced[0], quantizable_layers(model))
    qmodel = model if inplace else copy_module(model)
    state = to_fake_quantized(qmodel, resolved, rule, rounding=rounding, inputs=inputs)
    if traced is not None:
        graph, call = traced
        state.signature = call.signature
        note_graph(qmodel, graph, state)
    return qmodel


def _traced(model: nn.Module, example_inputs: Any) -> tuple[ComputationGraph, Call] | None:
    """None, with a warning, where no inputs were given and those of usual shapes do not fit."""
    try:
        return trace_with_call(model, example_inputs)
    except TraceError as error:
        if example_inputs is not None:
            raise
        warnings.warn(
            f"Layers that read the model's inputs get the ranges of others. {error}",
            UntracedWarning,
            stacklevel=3,
        )
        return None


def to_float(
    model: nn.Module, *, calibration: Iterable[Any] | None = None, inplace: bool = False
) -> nn.Module:
    """A copy of a fake-quantized model whose layers are torch's own again.

    Parameters and buffers stay as they stand. The statistics of its norms are those of quantized
    activations: pass `calibration` to re-estimate them for the float network.

    Args:
        model: From `predict_quantized_params` or `from_float`.
        calibration: Batches as for `calibrate`.
        inplace: Change `model` itself and return it.

    Raises:
        ArgumentError: `model` is no nn.Module, wrapped or compiled, `inplace` neither True nor
            False, or the batches are not for the model.
    """
    require_module(model, "to_float(qmodel)")
    refuse_wrapped(model, ArgumentError)
    require_switches(inplace=inplace)
    result = model if inplace else copy_module(model)
    if calibration is not None:
        with all_in_float(fake_quantized_layers(result)):
            calibrate(result, calibration)
    for module in result.modules():
        if isinstance(module, CHANGED):
            _to_float(module)
    return result


def _to_float(module: Any) -> None:
    object.__setattr__(module, "__class__", float_class(type(module)))
    for name in QUANTIZERS:
        module._modules.pop(name, None)
    for name in MEMBERS:
        vars(module).pop(name, None)


def fix_learned_steps(model: nn.Module) -> None:
    """Put a quantizer with a fixed range in place of each learned step."""
    for layer in fake_quantized_layers(model).values():
        for name in QUANTIZERS:
            learned = getattr(layer, name)
            if isinstance(learned, LearnedStepQuantizer):
                fixed = FakeQuantizer(learned.bits, learned.kind, learned.ranges)
                fixed.frozen_range = learned.fixed_range
                _put(layer, name, fixed)
