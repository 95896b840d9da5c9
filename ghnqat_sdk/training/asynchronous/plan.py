"""How long processes train together, and when the rate falls."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Plan:
    """Times of a training that has minutes instead of steps.

    Attributes:
        stable, total: Seconds after its beginning at which the rate begins to fall, and is zero.
        began: In seconds, as `time.time` gives them, which all processes share; infinite before it
            has begun.
    """

    stable: float
    total: float
    began: float = math.inf

    @classmethod
    def of(cls, minutes: float, decay: float) -> Plan:
        """So many minutes, in the last share of which the rate falls."""
        total = 60 * minutes
        return cls(total * (1 - decay), total)

    def begun(self, at: float) -> Plan:
        """The same from then on."""
        return replace(self, began=at)

    def seconds(self) -> float:
        """Since it began; none before."""
        return max(0.0, time.time() - self.began)

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
