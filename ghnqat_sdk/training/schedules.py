"""The learning rate: how it warms up, how it stays or falls, and the end of a branch.

A run's config chooses a schedule by `type`; "custom" is one that is written elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ghnqat_sdk.configs import Part
from ghnqat_sdk.plugins import ImportedCustom


class StableSchedule(Part):
    """Warm-up, then a constant rate for as long as the run goes on; `DecayConfig` ends it."""

    type: Literal["stable"] = "stable"
    warmup: int = Field(default=200, ge=0)
    """Steps in which the rate rises from zero."""

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return min(1.0, (step + 1) / max(self.warmup, 1))


class CosineSchedule(Part):
    """Warm-up, then half a cosine to zero at the last of a fixed number of steps."""

    type: Literal["cosine"] = "cosine"
    steps: int = Field(default=10_000, ge=1)
    warmup: int = Field(default=200, ge=0)

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        done = max(0.0, (step - self.warmup) / max(self.steps - self.warmup, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class CustomSchedule(ImportedCustom):
    """A schedule of a user's own: `factory(**settings)` gives a function of the step alone."""

    type: Literal["custom"] = "custom"
    expected: ClassVar[str] = (
        "A schedule is made by factory(**settings): a function of the step, counted from zero, to "
        "the number that the learning rate is multiplied by."
    )

    @cached_property
    def schedule(self) -> Callable[[int], float]:
        """The function, made once.

        Raises:
            ArgumentError: none is made.
        """
        schedule: Callable[[int], float] = self.call()
        if not callable(schedule):
            raise self.refusal(f"gives a {type(schedule).__name__}, no function")
        return schedule

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by.

        Raises:
            ArgumentError: no function is made, or it gives no number from zero on.
        """
        schedule = self.schedule
        with self.running(f"gives no rate for step {step}"):
            factor = float(schedule(step))
        if not 0 <= factor < math.inf:
            raise self.refusal(f"gives {factor} for step {step}, which is no rate")
        return factor


ScheduleConfig = Annotated[
    StableSchedule | CosineSchedule | CustomSchedule, Field(discriminator="type")
]


class DecayConfig(Part):
    """The end of a run with a stable schedule: the rate falls to zero, and hints fade before."""

    start: int = Field(ge=0)
    """Step of the stable run that it branches off from."""
    steps: int = Field(ge=1)
    """Until the rate is zero."""
    hints: float = Field(default=0.5, ge=0, le=1)
    """Share of these steps in which hints fade to nothing; 0 drops them at once."""

    def rate(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return max(0.0, 1.0 - max(0, step - self.start) / self.steps)

    def hint(self, step: int) -> float:
        """What the weight of hints is multiplied by."""
        if self.hints == 0:
            return 0.0
        return max(0.0, 1.0 - max(0, step - self.start) / (self.steps * self.hints))
