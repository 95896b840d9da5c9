"""Draws with integer odds: no last bit of a floating-point sum decides, on any machine."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def draw(rng: random.Random, odds: Mapping[T, int]) -> T:
    """One key, with odds as its integer weight."""
    left = rng.randrange(sum(odds.values()))
    for key, weight in odds.items():
        left -= weight
        if left < 0:
            return key
    raise AssertionError("odds are positive")
