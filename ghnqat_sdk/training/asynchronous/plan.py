"""How long processes train together, and when the rate falls."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Times of a training that has minutes instead of steps.

    Attributes:
        began: In seconds, as `time.time` gives them, which all processes share.
        stable, total: Seconds after it at which the rate begins to fall, and is zero.
    """

    began: float
    stable: float
    total: float

    @classmethod
    def from_now(cls, minutes: float, decay: float) -> Plan:
        """So many minutes, in the last share of which the rate falls."""
        total = 60 * minutes
        return cls(time.time(), total * (1 - decay), total)

    def seconds(self) -> float:
        """Since it began."""
        return time.time() - self.began

    def over(self) -> bool:
        """Whether the time is up."""
        return self.seconds() >= self.total

    def decayed(self) -> float:
        """How much of the decay is over."""
        since = self.seconds() - self.stable
        return min(1.0, max(0.0, since / max(1e-9, self.total - self.stable)))

    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return 1 - self.decayed()

    def hint(self) -> float:
        """What the weight of hints is multiplied by: it is zero half-way through the decay."""
        return max(0.0, 1 - 2 * self.decayed())
