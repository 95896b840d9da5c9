"""A range rule and a rounding as users write them."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnqat_sdk.quantization.functional import scale_and_zero_point
from ghnqat_sdk.quantization.ranges import RangeRule
from ghnqat_sdk.quantization.roundings import RoundingRule


class Quantiles(RangeRule):
    """Leaves out a share of the values at each end."""

    def __init__(self, share: float = 0.01) -> None:
        self.share = share

    def of(self, x: Tensor, kind: str, bits: int) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([self.share, 1 - self.share], dtype=x.dtype)
        low, high = torch.quantile(x.detach().flatten(), ends)
        return low, high


class QuantilesOfRows(Quantiles):
    """The same for each output channel of a weight."""

    def of(self, x: Tensor, kind: str, bits: int) -> tuple[Tensor, Tensor]:
        if kind != "weight":
            return super().of(x, kind, bits)
        ends = torch.tensor([self.share, 1 - self.share], dtype=x.dtype)
        low, high = torch.quantile(x.detach().flatten(1), ends, dim=1)
        return low.view(-1, *[1] * (x.ndim - 1)), high.view(-1, *[1] * (x.ndim - 1))

    def tensorwise(self) -> Quantiles:
        return Quantiles(self.share)


class Down(RoundingRule):
    """Always to the level below, with a straight-through gradient."""

    def quantize(self, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        scale, zero_point = scale_and_zero_point(low, high, bits)
        levels = (x / scale + zero_point).floor().clamp(0, 2**bits - 1)
        return x + (scale * (levels - zero_point) - x).detach()
