"""Ranges from histograms of values: by percentile, or by the least mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor


def percentile_range(
    counts: Tensor, low: float, high: float, percentile: float
) -> tuple[float, float]:
    """Range that leaves out the same share of values on both sides.

    Args:
        counts: (B,) histogram of values over [low, high].
        low, high: Its outer edges.
        percentile: Share of values below the upper and above the lower end, in percent, in (50,
            100].
    """
    share, width = counts.double().cumsum(0) / counts.sum(), (high - low) / len(counts)
    left = torch.searchsorted(share, 1 - percentile / 100).item()
    right = torch.searchsorted(share, percentile / 100).item()
    return low + width * left, min(low + width * (right + 1), high)


def mean_squared_error_range(
    counts: Tensor, low: float, high: float, bits: int
) -> tuple[float, float]:
    """Range, within [low, high], whose 2^bits levels have the smallest mean squared distance from
    the values.

    Both ends are shrunk together first, then each alone, over 100 ratios.

    Args:
        counts: (B,) histogram of values over [low, high].
        low, high: Its outer edges.
        bits: Of the levels.
    """
    edges = torch.linspace(low, high, len(counts) + 1, dtype=torch.float64, device=counts.device)
    centres, weights = (edges[:-1] + edges[1:]) / 2, counts.double()
    # Of equals, the widest.
    ratios = torch.linspace(0.01, 1.0, 100, dtype=torch.float64, device=counts.device).flip(0)

    def best(lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        levels = 2**bits - 1
        scale = ((highs.clamp(min=0) - lows.clamp(max=0)) / levels).clamp(min=1e-30).unsqueeze(1)
        zero = (-lows.clamp(max=0).unsqueeze(1) / scale).round()
        rounded = scale * (((centres / scale).round() + zero).clamp(0, levels) - zero)
        chosen = ((rounded - centres).square() * weights).sum(1).argmin()
        return lows[chosen], highs[chosen]

    lowest, highest = best(low * ratios, high * ratios)
    lowest, highest = best(low * ratios, highest.expand(100))
    lowest, highest = best(lowest.expand(100), high * ratios)
    return lowest.item(), highest.item()
