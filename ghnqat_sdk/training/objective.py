"""The loss of one predicted network on one batch, hints included, and its gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.training.balance import norms
from ghnqat_sdk.training.compute import Setting
from ghnqat_sdk.training.hints import Hints
from ghnqat_sdk.training.prepared import PreparedNetwork


@dataclass(frozen=True)
class NetworkLoss:
    """What one network gave.

    Attributes:
        loss: Cross-entropy.
        hint: Hint loss, None where there is none.
        accuracy: On the batch.
        gradients: By the predicted parameters, by name.
        of_projections: By the projections of the hints, in their order; empty without hints.
    """

    loss: float
    hint: float | None
    accuracy: float
    gradients: dict[str, Tensor]
    of_projections: list[Tensor | None]

    @property
    def finite(self) -> bool:
        """Whether it can be learned from."""
        return math.isfinite(self.norm)

    @cached_property
    def norm(self) -> float:
        """Of the gradients by the predicted parameters."""
        return norms(self.gradients.values()).norm().item()


def network_loss(
    network: PreparedNetwork,
    predicted: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    setting: Setting,
    *,
    label_smoothing: float = 0.0,
    hints: Hints | None = None,
    hint_weight: float = 0.0,
    teacher_features: Sequence[Tensor] = (),
    teacher_scores: Tensor | None = None,
    rng: random.Random | None = None,
) -> NetworkLoss:
    """Cross-entropy of the network with `predicted` parameters, and gradients with respect to them.

    The gradients stop at the prediction: the trainer runs the hypernetwork backward once for a
    whole meta-batch, so that only one network's activations are alive at a time.

    Args:
        network: See `prepare_network`.
        predicted: Name to tensor, from the hypernetwork.
        images: (N, 3, H, W) float32.
        labels: (N,) int64.
        setting: Bit-widths and how to run.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        hints: With `hint_weight`, `teacher_features` of these images, and `rng`, which chooses
            blocks; see `PreparedNetwork.takes_hints`.
        teacher_scores: (N, classes) of these images, for soft labels; they never fade.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in predicted.items()}
    scores, taps = network.plan.run(leaves, images, setting)
    entropy = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    fitted = _fit(scores, entropy, teacher_scores, hints)
    loss = fitted
    hint = None
    projections: list[Tensor] = []
    if hints is not None and hint_weight > 0:
        if network.takes_hints:
            projections = [p.detach().requires_grad_() for p in hints.projections]
            rng = rng or random.Random(0)
            hint = hints.loss(taps, teacher_features, projections, rng, network.joined)
            loss = fitted + hint_weight * hint
        else:
            loss = fitted * hints.config.weight_without(hint_weight)
    gradients = torch.autograd.grad(loss, [*leaves.values(), *projections], allow_unused=True)
    return NetworkLoss(
        loss=entropy.item(),
        hint=None if hint is None else hint.item(),
        accuracy=(scores.detach().argmax(1) == labels).float().mean().item(),
        gradients={n: g for n, g in zip(leaves, gradients, strict=False) if g is not None},
        of_projections=list(gradients[len(leaves) :]),
    )


def _fit(
    scores: Tensor, entropy: Tensor, teacher_scores: Tensor | None, hints: Hints | None
) -> Tensor:
    """The cross-entropy that is learned from: with labels, and with the teacher's probabilities."""
    share = 0.0 if hints is None else hints.config.soft_labels
    if teacher_scores is None or share == 0:
        return entropy
    return (1 - share) * entropy + share * F.cross_entropy(scores, teacher_scores.softmax(1))
