"""How far networks will come in a short training, told from a first step and predicted parameters.

No network is trained. What a network can reach with predicted parameters says little of how fast it
trains; with how far a first step lowers its loss, how deep and how large it is, the four tell more
than each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.generators import seed_generators
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.search.scores import scores_among

STEP = 0.03
"""Length of a first step, as a share of each weight's norm."""

MEASURES = {"loss": -1, "first_step": 1, "depth": -1, "macs": 1}
"""What networks are compared by, and whether more of it promises more."""


def promises(networks: Sequence[Mapping[str, float]]) -> list[float]:
    """Of each network, given by its measures: the mean of its ranks among all, from 0 to 1."""
    columns = [[sign * network[name] for network in networks] for name, sign in MEASURES.items()]
    ranks = [_ranks(column) for column in columns]
    most = max(1, len(networks) - 1)
    return [sum(of_one) / len(of_one) / most for of_one in zip(*ranks, strict=True)]


def _ranks(values: Sequence[float]) -> list[float]:
    """How many of all are smaller, and half of those that are equal."""
    return [
        sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values
    ]


def depth(graph: ComputationGraph) -> int:
    """Operations on the longest path from the images to the scores."""
    longest: list[int] = []
    for node in range(len(graph)):
        longest.append(1 + max((longest[i] for i in graph.predecessors[node]), default=0))
    return max(longest)


def first_step(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> float:
    """How far a first step of gradient descent lowers the loss of its own images.

    Args:
        model: In float; it is changed. Weights of its layers are drawn anew (He et al. 2015).
        images: (N, C, H, W)
        labels: (N,)
        classes: How many scores of an image there are.

    Returns:
        The difference of cross-entropies, before less after a step that is as long as `STEP` of
        each weight; minus infinity where one is not finite.
    """
    draw_anew(model)
    model.train()
    weights = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    before = _loss(model, images, labels, classes)
    gradients = torch.autograd.grad(before, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None and gradient.any():
                weight.sub_(gradient * (STEP * weight.norm() / gradient.norm()))
        lowered = (before - _loss(model, images, labels, classes)).item()
    return lowered if math.isfinite(lowered) else -math.inf


def draw_anew(model: nn.Module) -> None:
    """Weights of convolutions and linear layers for ReLUs, with biases of zero."""
    seed_generators()
    layers: dict[str, Any] = quantizable_layers(model)
    for layer in layers.values():
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _loss(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    seed_generators()  # what drops out is the same before and after
    scores = scores_among(model(images), len(images), classes)
    return nn.functional.cross_entropy(scores, labels)
