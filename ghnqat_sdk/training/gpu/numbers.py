"""What the kernels on a GPU share."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

_MOST_GROUPS = 264  # two for each multiprocessor of a large GPU
_TILE = 4096


@triton.jit
def nearest(v):
    """To the nearest whole number, halves to even ones, of numbers below 2^22."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def clipped_range(low, high, share, levels):
    """Scale and zero point of `share` of a range. Twin of quantization/ranges.py."""
    middle = tl.maximum(low, 0.0) + tl.minimum(high, 0.0)
    low = tl.minimum(middle + (low - middle) * share, 0.0)
    high = tl.maximum(middle + (high - middle) * share, 0.0)
    scale = (high - low) / levels
    scale = tl.where(scale < 1.17549435e-38, 1.0, scale)
    zero = nearest(tl.minimum(tl.maximum(-low / scale, 0.0), levels))
    return scale, zero


@triton.jit
def onto_levels(v, scale, zero, levels):
    """v on the levels of a range."""
    return nearest(tl.minimum(tl.maximum(v * (1.0 / scale), -zero), levels - zero)) * scale


class Tiles(NamedTuple):
    """How a matrix (P, C) is cut.

    Attributes:
        rows, channels: R and B, of one tile.
        blocks: Of channels.
        groups: Of rows.
        rows_of_group: A multiple of R.
    """

    rows: int
    channels: int
    blocks: int
    groups: int
    rows_of_group: int

    @classmethod
    def of(cls, positions: int, channels: int) -> Tiles:
        width = min(128, max(8, power_of_two(channels)))
        rows = _TILE // width
        blocks = ceiling(channels, width)
        groups = max(1, min(_MOST_GROUPS // blocks, ceiling(positions, rows)))
        rows_of_group = ceiling(ceiling(positions, groups), rows) * rows
        return cls(rows, width, blocks, ceiling(positions, rows_of_group), rows_of_group)

    @property
    def constants(self) -> dict[str, int]:
        """What kernels that work on tiles are compiled for."""
        return {"R": self.rows, "B": self.channels, "num_warps": 8}


def ceiling(total: int, part: int) -> int:
    """How many parts make up a total."""
    return -(-total // part)


def power_of_two(count: int) -> int:
    """The least one that is not below."""
    return 1 << max(0, (count - 1).bit_length())


def eights(count: int) -> tuple[int, int]:
    """A number as two factors, the second of which is 8 where it can be: the compiler then knows
    that rows begin at a multiple of 16 bytes."""
    return (count // 8, 8) if count % 8 == 0 else (count, 1)


def as_rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C) in memory."""
    return x.permute(0, 2, 3, 1).contiguous()
