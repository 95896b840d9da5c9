"""Range rules: how the range of a tensor follows from it, where it is clipped.

Where there is a compiler, training has a twin of this arithmetic in training/kernels.cpp, fed by
`share_of_extremes` and `sigmas_kept`: change both.

Each rule is its own config; `Ranges` is their union. `CustomRanges` is the config of one that is
written elsewhere.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from ghnqat_sdk.configs import Part
from ghnqat_sdk.plugins import CustomRule, by_name, variant
from ghnqat_sdk.quantization.functional import Range

Kind = Literal["weight", "activation", "input"]
"""A layer's weight, what it reads, and what the first layers read: the images."""
_LowBits = Annotated[int, Field(ge=2, le=8)]


def min_max_range(x: Tensor, *, by_row: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of x (...), as two 0-d tensors; of each row as (O, 1, ...)."""
    x = x.detach()
    if by_row:
        within = tuple(range(1, x.ndim))
        return x.amin(within, keepdim=True), x.amax(within, keepdim=True)
    return x.amin(), x.amax()  # five times as fast as aminmax on a CPU


def sigma_clipped_range(
    x: Tensor, sigmas: float | Tensor, *, by_row: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean ± `sigmas` standard deviations of x (...), never wider than its minimum and maximum; of
    each row as (O, 1, ...)."""
    low, high = min_max_range(x, by_row=by_row)
    within = tuple(range(1, x.ndim)) if by_row else None
    deviation, mean = torch.std_mean(x.detach().float(), within, correction=0, keepdim=by_row)
    return torch.maximum(low, mean - sigmas * deviation), torch.minimum(
        high, mean + sigmas * deviation
    )


def ratio_clipped_range(x: Tensor, ratio: float | Tensor) -> tuple[Tensor, Tensor]:
    """`ratio` (in (0, 1]) times the minimum and the maximum of x (...).

    Where 0 lies outside of them, the value nearest to it takes its place: of 2 … 3 a half is
    2 … 2.5, not 1 … 1.5, which none of the values lie in.
    """
    low, high = min_max_range(x)
    nearest = low.clamp(min=0) + high.clamp(max=0)
    return nearest + (low - nearest) * ratio, nearest + (high - nearest) * ratio


class RangeRule:
    """The base of all range rules. One of a user's own derives from it and writes `of`."""

    def of(self, x: Tensor, kind: Kind, bits: int) -> Range:
        """(low, high) of x (...), 0-d tensors or numbers; what lies outside is clipped.

        Of a weight (O, ...) also tensors (O, 1, ...), a range for each output channel.
        """
        raise NotImplementedError

    def share_of_extremes(self, bits: int) -> float | None:
        """What is kept of an activation's minimum and maximum; None where a range needs more than
        these."""
        return None

    def sigmas_kept(self, bits: int) -> float | None:
        """Deviations kept around a weight's mean, infinite for its extremes; None where a range
        needs more."""
        return None

    def tensorwise(self) -> RangeRule:
        """The same rule with one range for a whole weight."""
        return self


class _ByChannel(RangeRule, Part):
    """The base of the package's own rules."""

    per_channel: bool = False
    """Whether each output channel of a weight has a range of its own; one for the whole tensor
    otherwise."""

    def tensorwise(self) -> RangeRule:
        return self.model_copy(update={"per_channel": False})


class MinMaxRanges(_ByChannel):
    """The range of a tensor is its minimum and maximum, as in the GHN-QAT paper's reference
    setting."""

    type: Literal["min-max"] = "min-max"

    def of(self, x: Tensor, kind: Kind, bits: int) -> Range:
        return min_max_range(x, by_row=kind == "weight" and self.per_channel)

    def share_of_extremes(self, bits: int) -> float | None:
        return 1.0

    def sigmas_kept(self, bits: int) -> float | None:
        return None if self.per_channel else math.inf


class ClippedRanges(_ByChannel):
    """Ranges narrower than min-max, by a ratio for each bit-width: at 2 bits min-max keeps almost
    no signal.

    Weights are clipped at a number of standard deviations around their mean, activations at a share
    of their minimum and maximum. The defaults for weights are near the optimum for Gaussian values.
    The values of images lie evenly between their extremes, so that less of these is clipped.
    """

    type: Literal["clipped"] = "clipped"
    weight_sigmas: dict[_LowBits, Annotated[float, Field(gt=0, lt=100)]] = Field(
        default={2: 1.5, 3: 2.05, 4: 2.6, 5: 3.1, 6: 3.6, 7: 4.2, 8: 5.0}
    )
    """Standard deviations kept on each side of the mean, by weight bits; a missing width is
    min-max."""
    activation_ratio: dict[_LowBits, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={2: 0.39, 3: 0.48, 4: 0.58, 5: 0.7, 6: 0.82, 7: 0.92, 8: 1.0}
    )
    """Share of the minimum and maximum kept, by activation bits; a missing width is min-max."""
    input_ratio: dict[_LowBits, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={2: 0.6, 3: 0.75, 4: 0.85, 5: 0.92, 6: 0.97}
    )
    """The same where layers read the model's inputs; as `activation_ratio` where that alone is
    given."""

    @model_validator(mode="before")
    @classmethod
    def _inputs_as_activations(cls, values: Any) -> Any:
        """Also what files of before there was an `input_ratio` mean."""
        if isinstance(values, dict) and "activation_ratio" in values:
            return {"input_ratio": values["activation_ratio"], **values}
        return values

    def of(self, x: Tensor, kind: Kind, bits: int) -> Range:
        if kind != "weight":
            ratios = self.input_ratio if kind == "input" else self.activation_ratio
            ratio = ratios.get(bits, 1.0)
            return ratio_clipped_range(x, ratio) if ratio < 1 else min_max_range(x)
        if bits in self.weight_sigmas:
            return sigma_clipped_range(x, self.weight_sigmas[bits], by_row=self.per_channel)
        return min_max_range(x, by_row=self.per_channel)

    def share_of_extremes(self, bits: int) -> float | None:
        return self.activation_ratio.get(bits, 1.0)

    def sigmas_kept(self, bits: int) -> float | None:
        return None if self.per_channel else self.weight_sigmas.get(bits, math.inf)


class CustomRanges(CustomRule, RangeRule):
    """A range rule of a user's own: `factory(**settings)`, a `RangeRule`."""

    rule_type: ClassVar[type] = RangeRule
    type: Literal["custom"] = "custom"
    whole_weights: bool = False
    """Whether a weight has one range in any case: that of the `tensorwise` of the user's rule."""

    @cached_property
    def rule(self) -> RangeRule:
        rule: RangeRule = self.make(RangeRule)
        return rule.tensorwise() if self.whole_weights else rule

    def of(self, x: Tensor, kind: Kind, bits: int) -> Range:
        return self.rule.of(x, kind, bits)

    def share_of_extremes(self, bits: int) -> float | None:
        return self.rule.share_of_extremes(bits)

    def sigmas_kept(self, bits: int) -> float | None:
        return self.rule.sigmas_kept(bits)

    def tensorwise(self) -> CustomRanges:
        # Never the user's object, which no file can name.
        if self.whole_weights or self.rule.tensorwise() is self.rule:
            return self
        return CustomRanges(factory=self.factory, settings=self.settings, whole_weights=True)


Ranges = Annotated[
    MinMaxRanges | ClippedRanges | CustomRanges,
    Field(discriminator="type"),
    BeforeValidator(by_name),
]


def range_rule(given: Any) -> RangeRule:
    """A rule, or the one of the package that a name such as "min-max" stands for.

    Raises:
        ArgumentError: neither; or one of a user's own that is not imported, or cannot be made.
    """
    return variant(given, "ranges", RangeRule, Ranges, 'ClippedRanges(), or "min-max"')
