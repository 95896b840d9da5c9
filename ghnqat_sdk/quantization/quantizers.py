"""The modules that fake-quantize one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.quantization.functional import (
    Range,
    learned_step_quantize,
    scale_and_zero_point,
)
from ghnqat_sdk.quantization.ranges import Kind, RangeRule
from ghnqat_sdk.quantization.roundings import NEAREST, RoundingRule

FrozenRange = tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]
"""(low, high), or the lows and the highs of the output channels."""


class FakeQuantizer(nn.Module):
    """Fake-quantizes one tensor: the weight or the input of a layer.

    The range is taken from each tensor that comes by, until `freeze` fixes it; it is one for the
    tensor, or one for each output channel of a weight where `ranges` says so. It has no parameters
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
        self.frozen_range: FrozenRange | None = None
        # Sees every tensor on its way in, however the layer is called.
        self.observe: Callable[[Tensor], None] | None = None

    def freeze(self, low: Tensor | float, high: Tensor | float) -> None:
        """Use [low, high] for every tensor from now on; of (O, 1, ...), for each of its rows."""
        self.frozen_range = _constants(low, high)

    @property
    def follows(self) -> bool:
        """Whether each tensor has a range of its own."""
        return self.frozen_range is None

    @property
    def fixed_range(self) -> FrozenRange | None:
        """The range that every tensor is quantized with, None where it follows from each."""
        return self.frozen_range

    def range_of(self, x: Tensor) -> Range:
        """(low, high) that x (...) would be quantized with: numbers, 0-d, or (O, 1, ...)."""
        if self.frozen_range is None:
            return self.ranges.of(x, self.kind, self.bits)
        low, high = self.frozen_range
        if isinstance(low, float) or isinstance(high, float):
            return self.frozen_range  # type: ignore[return-value]
        return _by_row(low, x), _by_row(high, x)

    def forward(self, x: Tensor) -> Tensor:
        """x (...) on the levels of its range: same shape and dtype."""
        if self.observe is not None:
            self.observe(x)
        if self.bits == FLOAT_BITS or x.numel() == 0 or not torch.is_floating_point(x):
            return x
        return self._quantized(x)

    def _quantized(self, x: Tensor) -> Tensor:
        low, high = self.range_of(x)
        return self.rounding.quantize(x, low, high, self.bits)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        known = self.frozen_range
        if known is None:
            frozen = "dynamic"
        elif isinstance(known[0], tuple):
            frozen = f"{len(known[0])} channels"
        else:
            frozen = "[{:.4g}, {:.4g}]".format(*known)
        rule = type(self.ranges).__name__
        return f"{self.kind}, bits={self.bits}, ranges={rule}, range={frozen}"


def _constants(low: Tensor | float, high: Tensor | float) -> FrozenRange:
    """The ends of one range, or those (O, 1, ...) of many, as numbers."""
    if isinstance(low, Tensor) and isinstance(high, Tensor) and low.ndim:
        return tuple(low.flatten().tolist()), tuple(high.flatten().tolist())
    return float(low), float(high)


def _by_row(numbers: tuple[float, ...], x: Tensor) -> Tensor:
    """(O, 1, ...) beside x (O, ...)."""
    return torch.tensor(numbers, device=x.device).view(-1, *[1] * (x.ndim - 1))


class LearnedStepQuantizer(FakeQuantizer):
    """Fake-quantizes one tensor with a step that is trained (LSQ, Esser et al. 2020).

    The parameter is the logarithm of the scale, so that the scale stays positive. The zero point, a
    buffer beside it, stays that of the range it starts from. It rounds to the nearest level.

    Args:
        like: Where bits, kind and rules come from.
        low, high: The range to start from; of (O, 1, ...), a step for each output channel.
    """

    def __init__(self, like: FakeQuantizer, low: Tensor | float, high: Tensor | float) -> None:
        super().__init__(like.bits, like.kind, like.ranges)
        scale, zero_point = scale_and_zero_point(low, high, like.bits)
        self.log_scale = nn.Parameter(scale.log())
        self.zero_point: Tensor
        self.register_buffer("zero_point", zero_point)

    @property
    def follows(self) -> bool:
        """Never: its step is its own."""
        return False

    @property
    def fixed_range(self) -> FrozenRange:
        """The range of the levels as they stand."""
        return _constants(*self._ends())

    def range_of(self, x: Tensor) -> Range:
        """(low, high) of the levels as they stand, whatever x is."""
        return self._ends()

    def _ends(self) -> Range:
        scale, zero_point = self.log_scale.detach().exp(), self.zero_point
        if scale.ndim == 0:
            number, zero = scale.item(), zero_point.item()
            return -zero * number, (2**self.bits - 1 - zero) * number
        return -zero_point * scale, (2**self.bits - 1 - zero_point) * scale

    def _quantized(self, x: Tensor) -> Tensor:
        scale, batched = self.log_scale.exp(), self.kind != "weight"
        return learned_step_quantize(x, scale, self.zero_point, self.bits, batched=batched)
