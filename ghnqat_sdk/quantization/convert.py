"""Model to fake-quantized model and back, in place, with the `state_dict` keys of the float model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from ghnqat_sdk.bits import Bits, resolve_bits
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.layers import (
    LAYERS,
    NORMS,
    QuantizationState,
    fake_quantized_layers,
    require_module,
)
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges

_FLOAT = {quantized: original for original, quantized in (LAYERS | NORMS).items()}


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers of a float model that `to_fake_quantized` would change, by name."""
    return {name: module for name, module in model.named_modules() if type(module) in LAYERS}


def to_fake_quantized(
    model: nn.Module,
    bits: Bits | Mapping[str, Bits],
    ranges: MinMaxRanges | ClippedRanges,
    *,
    noise: bool = False,
    warn: bool = True,
) -> QuantizationState:
    """Make every convolution and linear layer of `model` fake-quantized, in place, the first and the last included.

    Layers change class and keep everything else (parameters, hooks, names, identity), so `state_dict` keys stay.

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
    for name, module in list(model.named_modules()):
        if type(module) in LAYERS:
            module.__class__ = LAYERS[type(module)]
            weight_bits, input_bits = bits[name] if isinstance(bits, Mapping) else bits
            module.input_quantizer = FakeQuantizer(input_bits, "activation", ranges, noise)
            module.weight_quantizer = FakeQuantizer(weight_bits, "weight", ranges, noise)
            module.quantization = state
            state.bits[name] = (weight_bits, input_bits)
        elif type(module) in NORMS:
            module.__class__ = NORMS[type(module)]
            module.quantization = state
        elif isinstance(module, tuple(LAYERS)) or hasattr(module, "in_proj_weight"):
            state.unquantized[name] = (
                f"{type(module).__qualname__} computes with its weight in a way of its own"
            )
    return state


def from_float(
    model: nn.Module, bits: Any = (4, 4), *, ranges: MinMaxRanges | ClippedRanges | None = None
) -> nn.Module:
    """A fake-quantized copy of a float model with its own weights: QAT from what you have, without a prediction.

    `to_float` leads back. Batch norm uses batch statistics until `calibrate`, as in a predicted model.

    Args:
        model: With torch's own layers; stays as it is.
        bits: As in `predict_quantized_params`: a (weight, activation) pair, or a mapping from patterns of layer names
            to pairs.
        ranges: How ranges follow from tensors; by default those of the weights that ship.

    Raises:
        ArgumentError: no float model, bits that are none, or a model that cannot be copied.
    """
    require_module(model, "from_float(model)")
    layers = quantizable_layers(model)
    if fake_quantized_layers(model) or not layers:
        raise ArgumentError(
            f"from_float needs a float model with convolutions or linear layers; this {type(model).__name__} "
            f"{'has none' if not fake_quantized_layers(model) else 'is fake-quantized already'}."
        )
    resolved = resolve_bits(bits, list(layers))
    try:
        qmodel = copy.deepcopy(model)
    except Exception as error:  # whatever the user's __deepcopy__ raises
        raise ArgumentError(
            f"This {type(model).__name__} cannot be copied: {type(error).__name__}: {error}. Detach tensors that "
            f"require a gradient before."
        ) from error
    to_fake_quantized(qmodel, resolved, ranges or ClippedRanges())
    return qmodel


def to_float(model: nn.Module) -> nn.Module:
    """Undo `to_fake_quantized` in place: the layers are torch's own again, parameters and buffers as they stand.

    Raises:
        ArgumentError: `model` is no nn.Module.
    """
    require_module(model, "to_float(qmodel)")
    for module in model.modules():
        if type(module) in _FLOAT:
            module.__class__ = _FLOAT[type(module)]
            for name in ("input_quantizer", "weight_quantizer"):
                module._modules.pop(name, None)
            del module.quantization
    return model
