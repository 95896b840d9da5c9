"""Projections of hints in closed form: what a hypernetwork that is trained already shows a new
teacher."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.hints import Hints, compared
from ghnqat_sdk.training.sampler import draw_batch
from ghnqat_sdk.training.trainer import Trainer

_RIDGE = 0.03  # of the mean variance of the channels
_STEPS = 6  # networks of so many steps are looked at


@torch.no_grad()
def fit_projections(trainer: Trainer) -> None:
    """Let the hints of a trainer start from least squares instead of random projections.

    Random ones ask a trained hypernetwork for other features than it has, for as long as they are
    random. Over the networks of the first steps, in float, each stage's projection is the ridge
    regression of the teacher's features on the channels that blocks show. A trainer without hints
    stays as it is.

    Args:
        trainer: Before its first step; only its projections change.
    """
    hints = trainer.hints
    if hints is None:
        return
    width = hints.config.channels
    grams = [torch.zeros(width, width) for _ in hints.projections]
    crosses = [torch.zeros_like(projection) for projection in hints.projections]
    for stage, weight, channels, features in _looks(trainer, hints):
        count = channels.shape[1]
        share = weight / len(channels) / channels.square().mean().clamp(min=1e-6)
        grams[stage][:count, :count] += share * (channels.mT @ channels)
        crosses[stage][:, :count] += share * (features.mT @ channels)
    for projection, gram, cross in zip(hints.projections, grams, crosses, strict=True):
        ridge = _RIDGE * gram.diagonal().mean()
        if ridge > 0:
            solved = torch.linalg.solve(gram + ridge * torch.eye(width), cross.mT).mT
            projection.copy_(solved / solved.norm(dim=1, keepdim=True).clamp(min=1e-6))


def _looks(trainer: Trainer, hints: Hints) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    """Stage, weight, channels (M, C) and features (M, T) of all blocks of some networks."""
    config = trainer.config
    setting = Setting((FLOAT_BITS, FLOAT_BITS), config.hypernetwork.ranges, compute=config.compute)
    for step in range(_STEPS):
        rng = random.Random(f"{config.seed}/projections/{step}")
        drawn, networks = trainer.networks.of_step(trainer.sampler.step(step))
        for draw, network in zip(drawn, networks, strict=True):
            if not network.takes_hints:
                continue
            graph = network.graph.with_bits(setting.bits)
            (predicted,) = trainer.model([graph], dtype=config.compute.dtype("decoder"))
            generator = torch.Generator().manual_seed(rng.getrandbits(62))
            batch = draw_batch(trainer.losses.images, draw.images, 0, generator)
            _, taps = network.plan.run(predicted, batch.images, setting)
            assert trainer.features is not None
            teacher_features = trainer.features.gather(batch.indices, batch.moves)
            every = range(len(taps))
            dealt = hints.dealt(taps, teacher_features, every, network.joined)
            for stage, weight, shown, target in dealt:
                yield stage, weight, *compared(shown.cpu(), target)
