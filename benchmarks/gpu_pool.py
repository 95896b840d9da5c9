"""What the processes of gpu_run.py share: the weights of a run, and gradients on their way to them.

A process takes the weights as they are, has some networks learn, and adds what they gave to a
buffer; whoever fills it makes one AdamW step. Nobody waits for another, so that a network that is
slow to prepare holds up its own process alone. Weights are a few steps old when gradients of them
arrive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.optimizers import AdamWConfig
from ghnqat_sdk.training.trainer import Trainer

WARMUP = 100
"""Updates in which the rate rises where moments begin anew."""

UNUSUAL = 20.0
"""How many times its usual norm a tensor's gradient may have: in one network of some hundred the
encoder's is a hundred times as large. At 3 networks of 2 bits count less, and suffer."""

_REMEMBERED = 0.99  # decay of the mean over which a norm is usual
_FIRST = 10  # gradients before anything counts as usual


class Fact(IntEnum):
    """Where a number stands in `Pool.facts`."""

    GATHERED = 0
    UPDATES = 1
    NETWORKS = 2
    IMAGES = 3
    MAC_IMAGES = 4
    SKIPPED = 5
    NORM = 6
    STOP = 7
    LOSS = 8
    LOSSES = 9


@dataclass(frozen=True)
class Plan:
    """How long, and how fast.

    Attributes:
        began: In seconds, as `time.time` gives them.
        stable, total: Seconds after it at which the rate begins to fall, and is zero.
        rate: Of the stable part.
        gather: Networks of one update.
    """

    began: float
    stable: float
    total: float
    rate: float
    gather: int

    def decayed(self) -> float:
        """How much of the decay is over."""
        since = time.time() - self.began - self.stable
        return min(1.0, max(0.0, since / max(1e-9, self.total - self.stable)))

    def rate_at(self, step: float) -> float:
        """Of an optimizer that has made so many steps."""
        return self.rate * (1 - self.decayed()) * min(1.0, step / WARMUP)

    def hint(self) -> float:
        """What the weight of hints is multiplied by: it is zero half-way through the decay."""
        return max(0.0, 1 - 2 * self.decayed())


class Pool:
    """A run's weights, average, moments, and gathered gradients, (P,) each, in shared memory."""

    def __init__(self, trainer: Trainer) -> None:
        config = trainer.config
        if not isinstance(config.optimizer, AdamWConfig):
            raise ArgumentError(
                f'The optimizer of this run is "{config.optimizer.type}". Write '
                f'"optimizer": {{"type": "adamw"}} into its run.json.'
            )
        self.betas = config.optimizer.betas
        self.decay = config.optimizer.weight_decay
        decayed = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
        self.sizes = [p.numel() for p in trainer.parameters]
        self.decays = [id(p) in decayed for p in trainer.parameters]
        self.weights = flat_of(trainer.parameters).share_memory_()
        self.average = self.weights.clone().share_memory_()
        averages = flat_of(list(trainer.average.module.parameters()))
        self.average[: len(averages)] = averages
        self.first, self.second, self.gathered = (
            torch.zeros_like(self.weights).share_memory_() for _ in range(3)
        )
        self.facts = torch.zeros(len(Fact), dtype=torch.float64).share_memory_()
        self.usual = torch.zeros(2, len(self.sizes), dtype=torch.float64).share_memory_()
        self.steps = 0
        self._take_moments(trainer)

    def _take_moments(self, trainer: Trainer) -> None:
        """Those of a run that was resumed with its optimizer's state."""
        buffers = zip(self.first.split(self.sizes), self.second.split(self.sizes), strict=True)
        for parameter, (first, second) in zip(trainer.parameters, buffers, strict=True):
            state = trainer.optimizer.state.get(parameter)
            if state:
                first.copy_(state["exp_avg"].flatten())
                second.copy_(state["exp_avg_sq"].flatten())
                self.steps = int(state["step"])

    def parts(self, flat: Tensor, decays: bool) -> list[Tensor]:
        """The parts of a buffer whose parameters decay, or do not."""
        pieces = zip(flat.split(self.sizes), self.decays, strict=True)
        return [piece for piece, own in pieces if own == decays]

    def add(self, gradient: Tensor, networks: int, plan: Plan, kept: float, limit: float) -> None:
        """Gather the mean gradient of some networks, and make a step once there are enough.

        Args:
            gradient: (P,)
            networks: How many it is of.
            plan: The rate.
            kept: Decay of the average.
            limit: Of the gradient's norm.
        """
        self._clip_unusual(gradient)
        self.gathered.add_(gradient, alpha=networks)
        self.facts[Fact.GATHERED] += networks
        if self.facts[Fact.GATHERED] >= plan.gather:
            self._update(plan, kept, limit)

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

    def _update(self, plan: Plan, kept: float, limit: float) -> None:
        gradient = self.gathered.div_(self.facts[Fact.GATHERED].item())
        norm = gradient.norm().item()
        gradient.mul_(min(1.0, limit / max(norm, 1e-12)))
        if norm < float("inf"):
            self.facts[Fact.UPDATES] += 1
            updates = self.facts[Fact.UPDATES].item()
            for decays in (True, False):
                self._step(decays, gradient, plan, self.steps + updates)
            few = (1 + updates) / (10 + updates)
            self.average.lerp_(self.weights, 1 - min(kept, few))
            self.facts[Fact.NORM] = norm
        gradient.zero_()
        self.facts[Fact.GATHERED] = 0

    def _step(self, decays: bool, gradient: Tensor, plan: Plan, step: float) -> None:
        parts = [
            self.parts(flat, decays) for flat in (self.weights, gradient, self.first, self.second)
        ]
        torch._fused_adamw_(
            *parts,
            [],
            [torch.tensor(float(step))] * len(parts[0]),
            lr=plan.rate_at(step),
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.decay if decays else 0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def give(self, trainer: Trainer) -> None:
        """Put everything into a trainer, to be saved as any run is."""
        with torch.no_grad():
            for parameter, value in zip(
                trainer.parameters, self._shaped(self.weights, trainer), strict=True
            ):
                parameter.copy_(value)
            for average, value in zip(
                trainer.average.module.parameters(),
                self._shaped(self.average, trainer),
                strict=False,
            ):
                average.copy_(value)
        moments = zip(
            trainer.parameters,
            self._shaped(self.first, trainer),
            self._shaped(self.second, trainer),
            strict=True,
        )
        step = (self.steps + self.facts[Fact.UPDATES]).float()
        for parameter, first, second in moments:
            trainer.optimizer.state[parameter] = {
                "step": step.clone(),
                "exp_avg": first.clone(),
                "exp_avg_sq": second.clone(),
            }
        facts, progress = self.facts, trainer.progress
        progress.step += int(facts[Fact.UPDATES])
        progress.networks += int(facts[Fact.NETWORKS])
        progress.images += int(facts[Fact.IMAGES])
        progress.mac_images += float(facts[Fact.MAC_IMAGES])
        progress.skipped_networks += int(facts[Fact.SKIPPED])

    def _shaped(self, flat: Tensor, trainer: Trainer) -> Iterator[Tensor]:
        for piece, parameter in zip(flat.split(self.sizes), trainer.parameters, strict=True):
            yield piece.view_as(parameter)


def flat_of(parameters: list[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
