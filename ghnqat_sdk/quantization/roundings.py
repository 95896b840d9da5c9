"""Roundings: how values come to the levels of their range.

Each rounding is its own config; `Rounding` is their union. `CustomRounding` is the config of one
that is written elsewhere.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from ghnqat_sdk.configs import Part
from ghnqat_sdk.plugins import CustomRule, by_name, variant
from ghnqat_sdk.quantization.functional import fake_quantize, uniform_noise

End = Tensor | float


class RoundingRule:
    """The base of all roundings. One of a user's own derives from it and writes `quantize`."""

    def quantize(self, x: Tensor, low: End, high: End, bits: int) -> Tensor:
        """x (...) on the 2^bits levels of [low, high]: same shape and dtype, with a gradient."""
        raise NotImplementedError


class NearestRounding(RoundingRule, Part):
    """To the nearest level, with a straight-through gradient: SimQuant of the GHN-QAT paper."""

    type: Literal["nearest"] = "nearest"

    def quantize(self, x: Tensor, low: End, high: End, bits: int) -> Tensor:
        return fake_quantize(x, low, high, bits)


NEAREST = NearestRounding()


class NoiseRounding(RoundingRule, Part):
    """Uniform noise of one step in place of rounding: NoiseQuant of the GHN-QAT paper."""

    type: Literal["noise"] = "noise"

    def quantize(self, x: Tensor, low: End, high: End, bits: int) -> Tensor:
        return uniform_noise(x, low, high, bits)


class CustomRounding(CustomRule, RoundingRule):
    """A rounding of a user's own: `factory(**settings)`, a `RoundingRule`."""

    rule_type: ClassVar[type] = RoundingRule
    type: Literal["custom"] = "custom"

    def quantize(self, x: Tensor, low: End, high: End, bits: int) -> Tensor:
        return self.rule.quantize(x, low, high, bits)


Rounding = Annotated[
    NearestRounding | NoiseRounding | CustomRounding,
    Field(discriminator="type"),
    BeforeValidator(by_name),
]


def without_switch(data: Any) -> Any:
    """A config as it was read, with a rounding where files once had the switch `noise`."""
    if not isinstance(data, dict) or "noise" not in data:
        return data
    rest = {name: value for name, value in data.items() if name != "noise"}
    return rest | {"rounding": "noise" if data["noise"] else "nearest"}


def rounding_rule(given: Any) -> RoundingRule:
    """A rounding, or the one of the package that "nearest" or "noise" stands for.

    Raises:
        ArgumentError: neither; or one of a user's own that is not imported, or cannot be made.
    """
    return variant(given, "rounding", RoundingRule, Rounding, '"nearest", or NoiseRounding()')
