"""What training says of itself: where a run stands, and what each of its steps measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ghnqat_sdk.training.sampler import Draw

_HIGHEST = 10.0
"""Loss of a network in a mean; that of an exploding one would say nothing of the others."""


@dataclass
class Progress:
    """Where a run stands; saved with its state.

    Attributes:
        step: Optimizer steps done.
        networks: Networks learned from; this and what follows in all processes.
        images: Images that passed through them.
        mac_images: Multiply-accumulates of their forward passes.
        skipped_networks: Networks left out because their loss or gradient was not finite, or they
            are for images of other sizes.
        seconds: Training time, interruptions left out.
        cpu_seconds: Time of the processors of all processes.
        best: Best validation figure so far, mean top-1 in percent.
    """

    step: int = 0
    networks: int = 0
    images: int = 0
    mac_images: float = 0.0
    skipped_networks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float = -1.0

    def add(self, counts: Tensor) -> None:
        """Those of a step, as `counted` gives them, summed over processes."""
        networks, images, mac_images, skipped, cpu_seconds = counts.tolist()
        self.networks += int(networks)
        self.images += int(images)
        self.mac_images += mac_images
        self.skipped_networks += int(skipped)
        self.cpu_seconds += cpu_seconds


def counted(
    drawn: Sequence[Draw], learned: Sequence[bool], unfit: int, cpu_seconds: float
) -> Tensor:
    """What a process adds to its run's progress in a step, (5,) numbers.

    Args:
        drawn: Its networks.
        learned: Which of them were learned from.
        unfit: How many were drawn besides.
        cpu_seconds: Since the step before.
    """
    used = [draw for draw, finite in zip(drawn, learned, strict=True) if finite]
    images = sum(draw.images for draw in used)
    mac_images = sum(draw.images * draw.architecture.macs for draw in used)
    skipped = len(drawn) - len(used) + unfit
    numbers = (len(used), images, mac_images, skipped, cpu_seconds)
    return torch.tensor(numbers, dtype=torch.float64)


class NetworkReport(NamedTuple):
    """What one network of a step gave; see `NetworkLoss`."""

    draw: Draw
    loss: float
    hint: float | None
    accuracy: float


@dataclass(frozen=True)
class StepReport:
    """What one step of this process measured.

    Attributes:
        step: Steps done, this one included.
        networks: What it drew, and what each gave.
        gradient_norm: Before clipping, over all processes.
        learning_rate: Of this step.
    """

    step: int
    networks: tuple[NetworkReport, ...] = field(repr=False)
    gradient_norm: float = 0.0
    learning_rate: float = 0.0


def averages(reports: Sequence[StepReport]) -> dict[str, object]:
    """Means over some steps, for the log; networks that are not finite are left out.

    Returns:
        training: Loss, and accuracy in percent, by bits.
        hint: Hint loss, where there was one.
    """
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    hints: list[float] = []
    for one in (network for report in reports for network in report.networks):
        if math.isfinite(one.loss):
            name = "W{}/A{}".format(*one.draw.bits)
            seen[name].append((min(one.loss, _HIGHEST), 100 * one.accuracy))
        if one.hint is not None:
            hints.append(one.hint)
    means = {
        bits: [round(sum(column) / len(pairs), 3) for column in zip(*pairs, strict=True)]
        for bits, pairs in sorted(seen.items())
    }
    hint = {"hint": round(sum(hints) / len(hints), 3)} if hints else {}
    return {"training": means, **hint}
