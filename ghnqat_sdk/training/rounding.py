"""What the kernels are told: how activations are rounded, and at which values they are cut."""

from __future__ import annotations

import math
from typing import NamedTuple

NO_LEVELS = 0
"""Stands for "do not round"."""


class ActivationRounding(NamedTuple):
    """How activations are rounded.

    Attributes:
        levels: 2^bits - 1, or `NO_LEVELS`.
        share: Of the minimum and maximum that is kept.
    """

    levels: int = NO_LEVELS
    share: float = 1.0


class Clip(NamedTuple):
    """An activation that clips: (0, inf) for ReLU, (0, 6) for ReLU6, (-inf, inf) for none."""

    low: float = -math.inf
    high: float = math.inf
