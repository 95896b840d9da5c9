"""What a network may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghnqat_sdk.checks import is_number
from ghnqat_sdk.errors import ArgumentError

COSTS = {
    "macs": "multiply-accumulates",
    "weight_bits": "bits of weights",
    "latency_ms": "milliseconds",
}
"""What networks cost, and how pictures and messages call it."""


@dataclass(frozen=True)
class Budget:
    """The most that one image may cost; None where there is no limit.

    Attributes:
        macs: Multiply-accumulates of the quantized layers.
        weight_bits: Bits of all weights together, 32 for each value of those not quantized.
        latency_ms: Milliseconds of the float network on this machine, on as many threads as torch
            has.
    """

    macs: float | None = None
    weight_bits: float | None = None
    latency_ms: float | None = None

    @classmethod
    def of(cls, limits: Mapping[str, float | None] | None) -> Budget:
        """From limits by name.

        Raises:
            ArgumentError: no mapping, a cost that is not known, or a limit that is no number
                above 0.
        """
        given = {} if limits is None else limits
        if not isinstance(given, Mapping) or not all(map(_is_limit, given.items())):
            raise ArgumentError(
                f"budget={limits!r} is no mapping from {', '.join(map(repr, COSTS))} to numbers "
                "above 0. Write budget={'macs': 20e6}."
            )
        return cls(**given)

    @property
    def limits(self) -> dict[str, float]:
        """Those that there are."""
        return {cost: getattr(self, cost) for cost in COSTS if getattr(self, cost) is not None}

    def excess(self, costs: Mapping[str, float]) -> str | None:
        """What is beyond the budget, or None; costs that are not known are within it."""
        beyond = [
            f"{costs[cost]:,.6g} {COSTS[cost]} of at most {limit:,.6g}"
            for cost, limit in self.limits.items()
            if costs.get(cost, 0) > limit
        ]
        return ", ".join(beyond) or None


def _is_limit(item: tuple[Any, Any]) -> bool:
    cost, limit = item
    return cost in COSTS and (limit is None or (is_number(limit) and limit > 0))
