"""The fake-quantized layers of a model: found, asked for, and run at other bits for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ghnqat_sdk.bits import FLOAT_BITS, Bits
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.refusals import refuse_wrapped
from ghnqat_sdk.quantization.layers import FakeQuantizedLayer
from ghnqat_sdk.quantization.roundings import NEAREST


def fake_quantized_layers(model: nn.Module) -> dict[str, Any]:
    """The fake-quantized convolutions and linear layers of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizedLayer)}


def bits_of(layers: Mapping[str, Any]) -> dict[str, Bits]:
    """The (weight, activation) bits of fake-quantized layers, by name."""
    return {
        name: Bits(layer.weight_quantizer.bits, layer.input_quantizer.bits)
        for name, layer in layers.items()
    }


def require_fake_quantized_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `fake_quantized_layers`, of a model that has some.

    Raises:
        ArgumentError: `qmodel` is no fake-quantized model, or wrapped or compiled; the message
            names `caller`, the function that needs one, or what to pass.
    """
    layers = layers_in_any(qmodel, caller)
    refuse_wrapped(qmodel, ArgumentError)
    return layers


def layers_in_any(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `require_fake_quantized_layers`, of a wrapped or compiled model as well: where names do
    not matter."""
    layers = fake_quantized_layers(qmodel) if isinstance(qmodel, nn.Module) else {}
    if not layers:
        raise not_fake_quantized(qmodel, caller)
    return layers


def not_fake_quantized(qmodel: Any, caller: str) -> ArgumentError:
    """What to raise where `caller` needs a fake-quantized model and got another."""
    return ArgumentError(
        f"{caller} needs a model from predict_quantized_params or from_float; this "
        f"{type(qmodel).__name__} has no fake-quantized layer. Write qmodel = "
        f"predict_quantized_params(model) or qmodel = from_float(model) first."
    )


def require_calibrated_layers(qmodel: Any, caller: str) -> dict[str, Any]:
    """As `require_fake_quantized_layers`, of a model that is calibrated in all its parts."""
    layers = require_fake_quantized_layers(qmodel, caller)
    missing = [name for name, layer in layers.items() if not layer.quantization.calibrated]
    if missing:
        what = f"{missing[0]!r} is not" if len(missing) < len(layers) else "it is not"
        raise ArgumentError(
            f"{caller} needs a calibrated model, and of this {type(qmodel).__name__} {what}. Write "
            f"calibrate(qmodel, batches) first."
        )
    return layers


def require_nearest(layers: Mapping[str, Any], what: str, otherwise: str = "") -> None:
    """Raise for fake-quantized layers that round other than to the nearest level.

    Raises:
        ArgumentError: the message begins with `what`, names the layer, and ends with `otherwise`.
    """
    for name, layer in layers.items():
        for quantizer in (layer.weight_quantizer, layer.input_quantizer):
            if quantizer.bits != FLOAT_BITS and quantizer.rounding != NEAREST:
                raise ArgumentError(
                    f"{what}, and {name!r} has {quantizer.rounding!r}. Write "
                    f"from_float(to_float(qmodel), bits) and calibrate that{otherwise}."
                )


def fixed_input_range(name: str, layer: Any) -> tuple[float, float]:
    """(low, high) of a calibrated layer's input, of a learned step as well.

    Raises:
        ArgumentError: no image reached the layer while calibrating.
    """
    known = layer.input_quantizer.fixed_range
    if known is None:
        raise ArgumentError(
            f"The input of {name!r} has no range: no image reached it while calibrating. Calibrate "
            f"with images that do, or predict with bits={{{name!r}: (4, 32), '*': (4, 4)}}."
        )
    low, high = known
    return low, high


@contextmanager
def layer_at(layer: Any, weight_bits: int, activation_bits: int) -> Iterator[None]:
    """One fake-quantized layer at other bits."""
    before = layer.weight_quantizer.bits, layer.input_quantizer.bits
    layer.weight_quantizer.bits, layer.input_quantizer.bits = weight_bits, activation_bits
    try:
        yield
    finally:
        layer.weight_quantizer.bits, layer.input_quantizer.bits = before


@contextmanager
def all_in_float(layers: dict[str, Any]) -> Iterator[None]:
    """No layer quantized."""
    with ExitStack() as stack:
        for layer in layers.values():
            stack.enter_context(layer_at(layer, FLOAT_BITS, FLOAT_BITS))
        yield
