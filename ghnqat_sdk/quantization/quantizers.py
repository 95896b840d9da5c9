"""Range rules with their configs, and the module that fake-quantizes one tensor."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import FLOAT_BITS
from ghnqat_sdk.quantization.functional import (
    fake_quantize,
    learned_step_quantize,
    min_max_range,
    ratio_clipped_range,
    scale_and_zero_point,
    sigma_clipped_range,
    uniform_noise,
)

Kind = Literal["weight", "activation"]
_LowBits = Annotated[int, Field(ge=2, le=8)]


class MinMaxRanges(BaseModel):
    """The range of a tensor is its minimum and maximum, as in the GHN-QAT paper's reference setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["min-max"] = "min-max"

    def of(self, x: Tensor, kind: Kind, bits: int) -> tuple[Tensor, Tensor]:
        """(low, high) of x (...)."""
        return min_max_range(x)

    def share_of_extremes(self, bits: int) -> float | None:
        """What is kept of an activation's minimum and maximum; None where a range needs more than these."""
        return 1.0

    def sigmas_kept(self, bits: int) -> float | None:
        """Deviations kept around a weight's mean, infinite for its extremes; None where a range needs more."""
        return math.inf


class ClippedRanges(BaseModel):
    """Ranges narrower than min-max, by a ratio for each bit-width: at 2 bits min-max keeps almost no signal.

    Weights are clipped at a number of standard deviations around their mean, activations at a share of their
    minimum and maximum. The defaults for weights are near the optimum for Gaussian values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["clipped"] = "clipped"
    weight_sigmas: dict[_LowBits, Annotated[float, Field(gt=0, lt=100)]] = {
        2: 1.5, 3: 2.05, 4: 2.6, 5: 3.1, 6: 3.6, 7: 4.2, 8: 5.0,
    }  # fmt: skip
    """Standard deviations kept on each side of the mean, by weight bits; a missing width is min-max."""
    activation_ratio: dict[_LowBits, Annotated[float, Field(gt=0, le=1)]] = {
        2: 0.39, 3: 0.48, 4: 0.58, 5: 0.7, 6: 0.82, 7: 0.92, 8: 1.0,
    }  # fmt: skip
    """Share of the minimum and maximum kept, by activation bits; a missing width is min-max."""

    def of(self, x: Tensor, kind: Kind, bits: int) -> tuple[Tensor, Tensor]:
        """(low, high) of x (...)."""
        if kind == "weight" and bits in self.weight_sigmas:
            return sigma_clipped_range(x, self.weight_sigmas[bits])
        if kind == "activation" and self.activation_ratio.get(bits, 1.0) < 1.0:
            return ratio_clipped_range(x, self.activation_ratio[bits])
        return min_max_range(x)

    def share_of_extremes(self, bits: int) -> float | None:
        """What is kept of an activation's minimum and maximum; None where a range needs more than these."""
        return self.activation_ratio.get(bits, 1.0)

    def sigmas_kept(self, bits: int) -> float | None:
        """Deviations kept around a weight's mean, infinite for its extremes; None where a range needs more."""
        return self.weight_sigmas.get(bits, math.inf)


Ranges = Annotated[MinMaxRanges | ClippedRanges, Field(discriminator="type")]


class FakeQuantizer(nn.Module):
    """Fake-quantizes one tensor, tensorwise: the weight or the input of a layer.

    The range is taken from each tensor that comes by, until `freeze` fixes it. It has no parameters and no persistent
    buffers, so that the `state_dict` of the model around it keeps its keys.

    Args:
        bits: 2 to 8, or 32 to leave the tensor as it is.
        kind: Which of the rules in `ranges` holds.
        ranges: How a range follows from a tensor.
        noise: Model rounding as additive uniform noise (NoiseQuant) instead of rounding (SimQuant).
    """

    def __init__(
        self, bits: int, kind: Kind, ranges: MinMaxRanges | ClippedRanges, noise: bool = False
    ) -> None:
        super().__init__()
        self.bits, self.kind, self.ranges, self.noise = bits, kind, ranges, noise
        # Plain floats: a frozen range is a constant of the model, and constants compile and export.
        self.frozen_range: tuple[float, float] | None = None

    def freeze(self, low: float, high: float) -> None:
        """Use [low, high] for every tensor from now on."""
        self.frozen_range = (float(low), float(high))

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """(low, high) that x (...) would be quantized with."""
        return self.frozen_range or self.ranges.of(x, self.kind, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """x (...) on the levels of its range: same shape and dtype."""
        if self.bits == FLOAT_BITS or x.numel() == 0 or not torch.is_floating_point(x):
            return x
        low, high = self.range_of(x)
        return (uniform_noise if self.noise else fake_quantize)(x, low, high, self.bits)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        frozen = (
            "dynamic"
            if self.frozen_range is None
            else "[{:.4g}, {:.4g}]".format(*self.frozen_range)
        )
        return f"{self.kind}, bits={self.bits}, ranges={self.ranges.type}, range={frozen}"


class LearnedStepQuantizer(FakeQuantizer):
    """Fake-quantizes one tensor with a step that is trained (LSQ, Esser et al. 2020).

    The parameter is the logarithm of the scale, so that the scale stays positive. The zero point stays that of the
    range it starts from.

    Args:
        like: Where bits, kind and rules come from.
        low, high: The range to start from.
    """

    def __init__(self, like: FakeQuantizer, low: float, high: float) -> None:
        super().__init__(like.bits, like.kind, like.ranges)
        scale, zero_point = scale_and_zero_point(low, high, like.bits)
        self.log_scale = nn.Parameter(scale.log())
        self.zero_point = int(zero_point)

    def range_of(self, x: Tensor) -> tuple[float, float]:
        """(low, high) of the levels as they stand, whatever x is."""
        scale = self.log_scale.detach().exp().item()
        return -self.zero_point * scale, (2**self.bits - 1 - self.zero_point) * scale

    def forward(self, x: Tensor) -> Tensor:
        """x (...) on the levels of its learned step: same shape and dtype."""
        if self.bits == FLOAT_BITS or x.numel() == 0 or not torch.is_floating_point(x):
            return x
        return learned_step_quantize(x, self.log_scale.exp(), self.zero_point, self.bits)
