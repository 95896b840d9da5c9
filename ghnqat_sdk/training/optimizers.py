"""Optimizers and schedules, each a config beside what it makes.

A run's config chooses one of each by `type`; "custom" is one that is written elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.optim import AdamW, Optimizer

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.plugins import ImportedCustom

_Rate = Annotated[float, Field(gt=0)]


class AdamWConfig(BaseModel):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    same_everywhere: ClassVar[bool] = True
    """Whether it makes the same steps in all processes, to the last digit."""
    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["adamw"] = "adamw"
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.type

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`."""
        groups = parameter_groups(modules, self.weight_decay)
        return AdamW(groups, lr=self.learning_rate, betas=self.betas, fused=True)


class SoapConfig(BaseModel):
    """Adam in the eigenbasis of Shampoo's preconditioner (SOAP, Vyas et al. 2024).

    It needs the train extra.
    """

    same_everywhere: ClassVar[bool] = False  # decompositions round differently
    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["soap"] = "soap"
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.type

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`.

        Raises:
            ArgumentError: the package that has SOAP is not installed.
        """
        try:
            from pytorch_optimizer import SOAP
        except ImportError as error:
            raise ArgumentError(
                'The optimizer "soap" needs pytorch_optimizer, which is not installed. Write '
                'pip install "ghnqat-sdk[train]", or choose {"type": "adamw"}.'
            ) from error
        return SOAP(parameter_groups(modules, self.weight_decay), lr=self.learning_rate)


class CustomOptimizer(ImportedCustom):
    """Any subclass of `torch.optim.Optimizer`: `factory(groups, lr=learning_rate, **settings)`."""

    same_everywhere: ClassVar[bool] = False
    type: Literal["custom"] = "custom"
    learning_rate: _Rate = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    """Of the parameters that decay; see `parameter_groups`."""

    @property
    def name(self) -> str:
        """What its saved state belongs to."""
        return self.factory

    def build(self, modules: Sequence[nn.Module]) -> Optimizer:
        """For all parameters of `modules`.

        Raises:
            ArgumentError: it is no optimizer, or does not take the settings.
        """
        groups = parameter_groups(modules, self.weight_decay)
        return self.make(Optimizer, groups, lr=self.learning_rate)


OptimizerConfig = Annotated[AdamWConfig | SoapConfig | CustomOptimizer, Field(discriminator="type")]


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, gains and embeddings, which have few or rare gradients, do not."""
    parts = [part for module in modules for part in module.modules()]
    embeddings = {id(part.weight) for part in parts if isinstance(part, nn.Embedding)}
    parameters = [p for module in modules for p in module.parameters()]
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    kept = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


class StableSchedule(BaseModel):
    """Warm-up, then a constant rate for as long as the run goes on; `DecayConfig` ends it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["stable"] = "stable"
    warmup: int = Field(default=200, ge=0)
    """Steps in which the rate rises from zero."""

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return min(1.0, (step + 1) / max(self.warmup, 1))


class CosineSchedule(BaseModel):
    """Warm-up, then half a cosine to zero at the last of a fixed number of steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return float(self.call()(step))


ScheduleConfig = Annotated[
    StableSchedule | CosineSchedule | CustomSchedule, Field(discriminator="type")
]


class DecayConfig(BaseModel):
    """The end of a run with a stable schedule: the rate falls to zero, and hints fade before."""

    model_config = ConfigDict(extra="forbid", frozen=True)
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
