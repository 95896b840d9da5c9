"""The modules that fake-quantize one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.quantization.functional import learned_step_quantize, scale_and_zero_point
from ghnqat_sdk.quantization.ranges import Kind, RangeRule
from ghnqat_sdk.quantization.roundings import NEAREST, RoundingRule


class FakeQuantizer(nn.Module):
    """Fake-quantizes one tensor, tensorwise: the weight or the input of a layer.

    The range is taken from each tensor that comes by, until `freeze` fixes it. It has no parameters
    and no persistent buffers, so that the `state_dict` of the model around it keeps its keys.

    Args:
        bits: 2 to 8, or 32 to leave the tensor as it is.
        kind: Which of the rules in `ranges` holds.
        ranges: How a range follows from a tensor.
        rounding: How values come to the levels of a range.
    """

    def __init__(
        self, bits: int, kind: Kind, ranges: RangeRule, rounding: RoundingRule = NEAREST
    ) -> None:
        super().__init__()
        self.bits = bits
        self.kind: Kind = kind
        self.ranges = ranges
        self.rounding = rounding
        # Plain floats: a frozen range is a constant of the model, and constants compile and export.
        self.frozen_range: tuple[float, float] | None = None
        # Sees every tensor on its way in, however the layer is called.
        self.observe: Callable[[Tensor], None] | None = None

    def freeze(self, low: float, high: float) -> None:
        """Use [low, high] for every tensor from now on."""
        self.frozen_range = (float(low), float(high))

    def range_of(self, x: Tensor) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """(low, high) that x (...) would be quantized with."""
        return self.frozen_range or self.ranges.of(x, self.kind, self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """x (...) on the levels of its range: same shape and dtype."""
        if self.observe is not None:
            self.observe(x)
        if self.bits == FLOAT_BITS or x.numel() == 0 or not torch.is_floating_point(x):
            return x
        low, high = self.range_of(x)
        return self.rounding.quantize(x, low, high, self.bits)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        known = self.frozen_range
        found = "dynamic" if known is None else "[{:.4g}, {:.4g}]".format(*known)
        rule = type(self.ranges).__name__
        return f"{self.kind}, bits={self.bits}, ranges={rule}, range={found}"


class LearnedStepQuantizer(FakeQuantizer):
    """Fake-quantizes one tensor with a step that is trained (LSQ, Esser et al. 2020).

    The parameter is the logarithm of the scale, so that the scale stays positive. The zero point, a
    buffer beside it, stays that of the range it starts from. It rounds to the nearest level.

    Args:
        like: Where bits, kind and rules come from.
        low, high: The range to start from.
    """

    def __init__(self, like: FakeQuantizer, low: float, high: float) -> None:
        super().__init__(like.bits, like.kind, like.ranges)
        scale, zero_point = scale_and_zero_point(low, high, like.bits)
        self.log_scale = nn.Parameter(scale.log())
        self.zero_point: Tensor
        self.register_buffer("zero_point", zero_point)

    def range_of(self, x: Tensor) -> tuple[float, float]:
        """(low, high) of the levels as they stand, whatever x is."""
        scale = self.log_scale.detach().exp().item()
        zero_point = self.zero_point.item()
        return -zero_point * scale, (2**self.bits - 1 - zero_point) * scale

    def forward(self, x: Tensor) -> Tensor:
        """x (...) on the levels of its learned step: same shape and dtype."""
        if self.observe is not None:
            self.observe(x)
        if self.bits == FLOAT_BITS or x.numel() == 0 or not torch.is_floating_point(x):
            return x
        return learned_step_quantize(x, self.log_scale.exp(), self.zero_point, self.bits)
