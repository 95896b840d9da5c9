"""Model to fake-quantized model and back, with the `state_dict` keys of the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS, Bits, Pair, resolve_bits
from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.ops import op_of, quantizable_layers
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.layers import (
    CalibratedNorm,
    FakeQuantizedLayer,
    fake_quantized_class,
    fake_quantized_layers,
    float_class,
    is_norm,
)
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges
from ghnqat_sdk.quantization.state import QuantizationState, require_module

_MEMBERS = ("quantization", "observe", "__module__")


def to_fake_quantized(
    model: nn.Module,
    bits: Pair | Mapping[str, Pair],
    ranges: MinMaxRanges | ClippedRanges,
    *,
    noise: bool = False,
    warn: bool = True,
) -> QuantizationState:
    """Make every convolution and linear layer of `model` fake-quantized, in place.

    Layers change class and keep everything else (parameters, hooks, names, identity), so
    `state_dict` keys stay; a class derived from torch's own stays a base of the new one.

    Args:
        model: Any model; modules of other types are left alone.
        bits: (weight, activation), or one such pair for each layer by its name.
        ranges: Rule that gives a tensor's range.
        noise: NoiseQuant instead of SimQuant.
        warn: Whether an evaluation before calibration is pointed out.

    Returns:
        The state that all the layers share.
    """
    state = QuantizationState(warn=warn)
    layers = quantizable_layers(model)
    for name, layer in layers.items():
        weight_bits, input_bits = bits[name] if isinstance(bits, Mapping) else bits
        _change_class(layer, state)
        layer.input_quantizer = FakeQuantizer(input_bits, "activation", ranges, noise)
        layer.weight_quantizer = FakeQuantizer(weight_bits, "weight", ranges, noise)
        # Modules that fuse the layers inside them do not where one has a hook.
        layer.register_forward_pre_hook(_called)
        state.bits[name] = Bits(weight_bits, input_bits)
    for name, module in model.named_modules():
        if is_norm(module):
            _change_class(module, state)
        elif name not in layers and (reason := _float_reason(module)) is not None:
            state.unquantized[name] = reason
    return state


def _change_class(module: nn.Module, state: QuantizationState) -> None:
    module.__class__ = fake_quantized_class(type(module))
    vars(module)["quantization"] = state
    vars(module)["__module__"] = "torch.nn"  # torch.fx keeps modules of torch.nn whole


def _called(layer: nn.Module, args: Any) -> None:
    """A hook that changes nothing."""


def _float_reason(module: nn.Module) -> str | None:
    """Why a module with weights of its own stays float, as far as its class tells."""
    op, kind = op_of(module), type(module).__qualname__
    if op is not None and op.quantized:
        return "the module around it reads its weight and does not call it"
    if op is not None and op.opaque:
        return f"{kind} computes with its weights in one call of its own"
    statistics = getattr(module, "running_mean", None)
    if isinstance(statistics, Tensor) and not isinstance(module, CalibratedNorm):
        return f"{kind} is no norm of torch's: it keeps its running statistics"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase, nn.Bilinear)):
        return f"{kind} is computed in float"
    return None


def from_float(
    model: nn.Module,
    bits: Any = (4, 4),
    *,
    ranges: MinMaxRanges | ClippedRanges | None = None,
    inplace: bool = False,
) -> nn.Module:
    """A fake-quantized copy of a float model with its own weights: QAT without a prediction.

    `to_float` leads back. Batch norm uses batch statistics until `calibrate`, as in a predicted
    model.

    Args:
        model: With torch's own layers, or classes derived from them.
        bits: As in `predict_quantized_params`: a (weight, activation) pair, or a mapping from
            patterns of layer names to pairs.
        ranges: How ranges follow from tensors; by default those of the weights that ship.
        inplace: Change `model` itself and return it.

    Raises:
        ArgumentError: no float model, bits that are none, or a model that cannot be copied.
    """
    require_module(model, "from_float(model)")
    layers = quantizable_layers(model)
    if fake_quantized_layers(model) or not layers:
        fault = "is fake-quantized already" if fake_quantized_layers(model) else "has none"
        raise ArgumentError(
            f"from_float needs a float model with convolutions or linear layers; this "
            f"{type(model).__name__} {fault}."
        )
    resolved = resolve_bits(bits, list(layers))
    qmodel = model if inplace else copy_module(model)
    to_fake_quantized(qmodel, resolved, ranges or ClippedRanges())
    return qmodel


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
        ArgumentError: `model` is no nn.Module, or the batches are not for it.
    """
    require_module(model, "to_float(qmodel)")
    result = model if inplace else copy_module(model)
    if calibration is not None:
        for layer in fake_quantized_layers(result).values():
            layer.input_quantizer.bits = layer.weight_quantizer.bits = FLOAT_BITS
        calibrate(result, calibration)
    for module in result.modules():
        if isinstance(module, (FakeQuantizedLayer, CalibratedNorm)):
            _to_float(module)
    return result


def _to_float(module: Any) -> None:
    module.__class__ = float_class(type(module))
    for name in ("input_quantizer", "weight_quantizer"):
        module._modules.pop(name, None)
    for name in _MEMBERS:
        vars(module).pop(name, None)
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if hook is _called]:
        del hooks[key]


def fix_learned_steps(model: nn.Module) -> None:
    """Put a quantizer with a fixed range in place of each learned step."""
    for layer in fake_quantized_layers(model).values():
        for name in ("weight_quantizer", "input_quantizer"):
            learned = getattr(layer, name)
            if isinstance(learned, LearnedStepQuantizer):
                fixed = FakeQuantizer(learned.bits, learned.kind, learned.ranges)
                fixed.freeze(*learned.range_of(layer.weight))
                setattr(layer, name, fixed)
