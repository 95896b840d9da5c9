"""What quantization.json holds: the bits, ranges and rules of a fake-quantized model's layers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ghnqat_sdk.bits import SUPPORTED_BITS
from ghnqat_sdk.configs import Part
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.ranges import RangeRule, Ranges, range_rule
from ghnqat_sdk.quantization.roundings import (
    NEAREST,
    Rounding,
    RoundingRule,
    rounding_rule,
    without_switch,
)

_Range = tuple[float, float]
_RangesOfChannels = tuple[tuple[float, ...], tuple[float, ...]]


class Rules(Part):
    """How ranges follow from tensors, and values come to their levels."""

    ranges: Ranges
    rounding: Rounding = NEAREST

    @classmethod
    def of(cls, quantizer: Any) -> Rules:
        """Those of a weight or an input.

        Raises:
            ArgumentError: no file can name them.
        """
        try:
            return cls(ranges=quantizer.ranges, rounding=quantizer.rounding)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            kind = type(getattr(quantizer, name)).__name__
            raise ArgumentError(
                f"A file cannot say what made this {kind}. Write from_float(model, "
                f"{name}=Custom{name.capitalize()}(factory={kind}, settings={{...}}))."
            ) from error

    def made(self) -> tuple[RangeRule, RoundingRule]:
        """Both rules.

        Raises:
            ArgumentError: one is of a user's own and not imported, or cannot be made.
        """
        return range_rule(self.ranges), rounding_rule(self.rounding)


class LayerSettings(Part):
    """How one layer is quantized; a range of None follows the tensor."""

    weight_bits: Literal[SUPPORTED_BITS]  # type: ignore[valid-type]
    activation_bits: Literal[SUPPORTED_BITS]  # type: ignore[valid-type]
    weight_range: _Range | _RangesOfChannels | None
    activation_range: _Range | None
    reads_inputs: bool = False
    """Whether it reads the model's inputs, for which rules have a kind of their own."""
    rules: Rules | None = None
    """Where they are not those of the first layer."""
    input_rules: Rules | None = None
    """Of its input, where they are not those of its weight."""

    @classmethod
    def of(cls, layer: Any, rules: Rules) -> LayerSettings:
        """A layer's, in a model where the first layer's weight has `rules`."""
        weight, activation = layer.weight_quantizer, layer.input_quantizer
        own, of_input = Rules.of(weight), Rules.of(activation)
        return cls(
            weight_bits=weight.bits,
            activation_bits=activation.bits,
            weight_range=weight.frozen_range,
            activation_range=activation.frozen_range,
            reads_inputs=activation.kind == "input",
            rules=None if own == rules else own,
            input_rules=None if of_input == own else of_input,
        )


class QuantizationSettings(Rules):
    """What a model's files hold beside its tensors."""

    format: Literal[1] = 1
    calibrated: bool
    normalized: bool = False
    """Whether the model was predicted, and so made for normalized images."""
    inputs: int = 1
    """How many entries of a batch are the model's inputs."""
    keywords: tuple[str, ...] | None = None
    """Which entries of a batch with names are."""
    layers: dict[str, LayerSettings] = Field(min_length=1)
    unquantized: tuple[str, ...] = ()
    """Layers that could be quantized, and are not."""
    unreached: tuple[str, ...] = ()
    """Norms that no image reached while calibrating."""
    sha256: str
    """Over the tensors of model.safetensors."""

    _older = model_validator(mode="before")(without_switch)
