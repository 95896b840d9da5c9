"""What processes that train together share: the weights of a run, and gradients on their way there.

A process takes the weights as they are, has some networks learn, and adds what they gave to a
buffer; whoever fills it makes one AdamW step. Weights are a few steps old when gradients of them
arrive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import IntEnum, auto

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.asynchronous.plan import Plan
from ghnqat_sdk.training.average import running_average
from ghnqat_sdk.training.objective import NetworkLoss
from ghnqat_sdk.training.optimizers import AdamWConfig
from ghnqat_sdk.training.reports import Progress, counted
from ghnqat_sdk.training.sampler import Draw
from ghnqat_sdk.training.trainer import Trainer

WARMUP = 100
"""Updates in which the rate rises where moments begin anew."""

UNUSUAL = 20.0
"""How many times its usual norm a tensor's gradient may have: in one network of some hundred the
encoder's is a hundred times as large. At 3, networks of 2 bits count less, and suffer."""

_REMEMBERED = 0.99  # decay of the mean over which a norm is usual
_FIRST = 10  # gradients before anything counts as usual
_HIGHEST = 5.0  # loss of a network in a mean, which an exploding one would rule


class Fact(IntEnum):
    """Where a number stands in `Pool.facts`."""

    STOP = 0
    READY = auto()
    BEGAN = auto()
    GATHERED = auto()
    UPDATES = auto()
    NETWORKS = auto()
    IMAGES = auto()
    MAC_IMAGES = auto()
    SKIPPED = auto()
    CPU_SECONDS = auto()
    LOSS = auto()
    LOSSES = auto()


_COUNTS = slice(Fact.NETWORKS, Fact.CPU_SECONDS + 1)  # as `counted` has them


class Pool:
    """A run's weights, average, moments, and gathered gradients, (P,) each, in shared memory.

    Args:
        trainer: Of the run.
        gather: Networks of an update.

    Raises:
        ArgumentError: an optimizer other than AdamW.
    """

    def __init__(self, trainer: Trainer, gather: int) -> None:
        self.config = trainer.config
        self.gather = gather
        self.start = replace(trainer.progress)
        optimizer = self.config.optimizer
        if not isinstance(optimizer, AdamWConfig):
            raise ArgumentError(
                f'The optimizer of this run is "{optimizer.type}", and processes that do not wait '
                f'for each other take the steps of "adamw". Train it with ghnqat-train run.'
            )
        self.betas = optimizer.betas
        self.decay = optimizer.weight_decay
        decayed = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
        self.sizes = [p.numel() for p in trainer.parameters]
        self.decays = [id(p) in decayed for p in trainer.parameters]
        self.weights = flat_of(trainer.parameters).share_memory_()
        self.average = self.weights.clone().share_memory_()
        averages = flat_of(list(trainer.average.module.parameters()))
        self.average[: len(averages)] = averages
        self.averaged = int(trainer.average.n_averaged)
        self.first, self.second, self.gathered = (
            torch.zeros_like(self.weights).share_memory_() for _ in range(3)
        )
        self.facts = torch.zeros(len(Fact), dtype=torch.float64).share_memory_()
        self.usual = torch.zeros(2, len(self.sizes), dtype=torch.float64).share_memory_()
        self.moments = self._take_moments(trainer)

    def _take_moments(self, trainer: Trainer) -> int:
        """Those of a run that was resumed with its optimizer's state; returns its steps."""
        steps = 0
        buffers = zip(self.first.split(self.sizes), self.second.split(self.sizes), strict=True)
        for parameter, (first, second) in zip(trainer.parameters, buffers, strict=True):
            state = trainer.optimizer.state.get(parameter)
            if state:
                first.copy_(state["exp_avg"].flatten())
                second.copy_(state["exp_avg_sq"].flatten())
                steps = int(state["step"])
        return steps

    @property
    def step(self) -> int:
        """Steps of the run that are done."""
        return self.start.step + int(self.facts[Fact.UPDATES])

    def progress(self) -> Progress:
        """Where the run stands, but for its seconds."""
        found = replace(self.start, step=self.step)
        found.add(self.facts[_COUNTS])
        return found

    def count(
        self, drawn: Sequence[Draw], results: Sequence[NetworkLoss], unfit: int, seconds: float
    ) -> None:
        """Note what some networks gave, how many were drawn besides, and what the processor's time
        was that they took."""
        finite = [result.finite for result in results]
        self.facts[_COUNTS] += counted(drawn, finite, unfit, seconds)
        losses = [min(result.loss, _HIGHEST) for result in results if result.finite]
        self.facts[Fact.LOSS] += sum(losses)
        self.facts[Fact.LOSSES] += len(losses)

    def add(self, gradient: Tensor, networks: int, plan: Plan) -> None:
        """Gather the mean gradient of some networks, and make a step once there are enough.

        Args:
            gradient: (P,); it may be changed.
            networks: How many it is of.
            plan: The rate.
        """
        self._clip_unusual(gradient)
        self.gathered.add_(gradient, alpha=networks)
        self.facts[Fact.GATHERED] += networks
        if self.facts[Fact.GATHERED] >= self.gather:
            self._update(plan.rate())

    def _clip_unusual(self, gradient: Tensor) -> None:
        """Each tensor's to `UNUSUAL` times the geometric mean of its norms up to now."""
        parts = gradient.split(self.sizes)
        norms = torch.stack(torch._foreach_norm(parts)).double()
        means, counts = self.usual
        usual = (means / (1 - _REMEMBERED**counts).clamp(min=1e-9)).exp()
        shares = torch.where(counts < _FIRST, 1.0, (UNUSUAL * usual / norms).clamp(max=1.0))
        torch._foreach_mul_(parts, [share.item() for share in shares.nan_to_num(1.0)])
        seen = norms.isfinite() & (norms > 0)  # not of what none of the networks has
        means[seen] = torch.lerp(norms[seen].log(), means[seen], _REMEMBERED)
        counts[seen] += 1

    def _update(self, share: float) -> None:
        gradient = self.gathered.div_(self.facts[Fact.GATHERED].item())
        norm = gradient.norm().item()
        limit = self.config.clip_norm * self.config.gradient_scale_at(self.step)
        gradient.mul_(min(1.0, limit / max(norm, 1e-12)))
        if 0 < norm < float("inf"):
            rate = share * self.config.learning_rate_at(self.step)
            self.facts[Fact.UPDATES] += 1
            updates = self.facts[Fact.UPDATES].item()
            for decays in (True, False):
                self._step(decays, gradient, rate, self.moments + updates)
            follow = running_average(self.config.average)
            follow([self.average], [self.weights], self.averaged + int(updates))
        gradient.zero_()
        self.facts[Fact.GATHERED] = 0

    def _step(self, decays: bool, gradient: Tensor, rate: float, moments: float) -> None:
        weights, gradients, first, second = (
            self._parts(flat, decays) for flat in (self.weights, gradient, self.first, self.second)
        )
        torch._fused_adamw_(
            weights,
            gradients,
            first,
            second,
            [],
            [torch.tensor(float(moments))] * len(weights),
            lr=rate * min(1.0, moments / WARMUP),
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay if decays else 0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _parts(self, flat: Tensor, decays: bool) -> list[Tensor]:
        """The parts of a buffer whose parameters decay, or do not."""
        pieces = zip(flat.split(self.sizes), self.decays, strict=True)
        return [piece for piece, own in pieces if own == decays]

    @torch.no_grad()
    def give(self, trainer: Trainer) -> None:
        """Put everything into a trainer, to be saved as any run is."""
        parameters = trainer.parameters
        for parameter, value in zip(parameters, self._shaped(self.weights, trainer), strict=True):
            parameter.copy_(value)
        self.give_average(trainer)
        moments = zip(
            parameters,
            self._shaped(self.first, trainer),
            self._shaped(self.second, trainer),
            strict=True,
        )
        facts = self.facts
        step = (self.moments + facts[Fact.UPDATES]).float()
        for parameter, first, second in moments:
            trainer.optimizer.state[parameter] = {
                "step": step.clone(),
                "exp_avg": first.to(parameter.device, copy=True),
                "exp_avg_sq": second.to(parameter.device, copy=True),
            }
        trainer.progress = replace(self.progress(), best=trainer.progress.best)

    @torch.no_grad()
    def give_average(self, trainer: Trainer) -> None:
        """Put the averaged weights alone into a trainer."""
        averages = trainer.average.module.parameters()
        for average, value in zip(averages, self._shaped(self.average, trainer), strict=False):
            average.copy_(value)
        trainer.average.n_averaged.fill_(self.averaged + int(self.facts[Fact.UPDATES]))

    def _shaped(self, flat: Tensor, trainer: Trainer) -> Iterator[Tensor]:
        for piece, parameter in zip(flat.split(self.sizes), trainer.parameters, strict=True):
            yield piece.view_as(parameter)


def flat_of(parameters: Sequence[Tensor]) -> Tensor:
    """Of all parameters, (P,), in the memory of the processor."""
    return torch.cat([parameter.detach().cpu().flatten() for parameter in parameters])
