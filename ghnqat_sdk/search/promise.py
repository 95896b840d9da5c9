"""How far networks will come in a short training, told without training any.

The loss with predicted parameters says what a network can reach, and the norm of its first gradient
how hard it is to train: deep networks, and those whose layers disagree, have large ones. The mean
of the ranks in both tells more than each.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ghnqat_sdk.generators import seed_generators
from ghnqat_sdk.graph.layers import he_start
from ghnqat_sdk.search.scores import scores_among

MEASURES = ("loss", "gradient_norm")
"""What networks are compared by: the less of both, the better."""


def promises(networks: Sequence[Mapping[str, float]]) -> list[float]:
    """Of each network, given by its measures: the mean of its ranks among all, from 0 to 1."""
    ranks = [_ranks([-network[name] for network in networks]) for name in MEASURES]
    most = max(1, len(networks) - 1)
    return [sum(of_one) / len(of_one) / most for of_one in zip(*ranks, strict=True)]


def _ranks(values: Sequence[float]) -> list[float]:
    """How many of all are smaller, and half of the others that are equal."""
    ordered = sorted(values)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v) - 1) / 2 for v in values]


def gradient_norm(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> float:
    """Sum of the norms of the first gradient by each weight (Abdelfattah et al. 2021).

    Args:
        model: In float; it stays as it is, a copy starts after He et al. (2015).
        images: (N, C, H, W)
        labels: (N,)
        classes: How many scores of an image there are.

    Returns:
        The sum, with statistics of the batch; infinity where it is not finite.
    """
    model = he_start(model, seed=0).train()
    seed_generators()  # what drops out is the same each time
    weights = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    scores = scores_among(model(images), len(images), classes)
    loss = nn.functional.cross_entropy(scores, labels)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    total = math.fsum(gradient.norm().item() for gradient in gradients if gradient is not None)
    return total if math.isfinite(total) else math.inf
