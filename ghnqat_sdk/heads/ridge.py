"""Linear classifiers in closed form, from sums over features: ridge regression onto one-hot
targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Tried where none is given, in units of the mean variance of the features within a class."""

_SCALES = tuple(float(scale) for scale in torch.logspace(0, 2, 41, device="cpu"))
_NEVER = -1.0  # the score of a class without images, where 0 is "another class" and 1 "this class"


class ClassSums:
    """What ridge regression needs to know of labelled features; memory grows with D², not with N.

    Attributes:
        counts: (K,) float64 images of each class.
        totals: (K, D) float64 sums of their features.
        scatter: (D, D) float64 sum of the outer products of all features.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64, device="cpu")
        self.totals = torch.zeros(classes, width, dtype=torch.float64, device="cpu")
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count in features (n, D) of labels (n,)."""
        features = features.double()
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.totals.index_add_(0, labels, features)
        self.scatter.addmm_(features.T, features)


@dataclass(frozen=True)
class Linear:
    """A linear classifier: scores = features · weightᵀ + bias.

    Attributes:
        weight: (K, D).
        bias: (K,), None where the layer has none.
    """

    weight: Tensor
    bias: Tensor | None

    def scaled(self, factor: float) -> Linear:
        """Scores times `factor`."""
        return Linear(self.weight * factor, None if self.bias is None else self.bias * factor)

    def quantized(self, quantize: Callable[[Tensor], Tensor]) -> Linear:
        """The same with its weight on the levels of a layer."""
        return Linear(quantize(self.weight), self.bias)

    def __call__(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class Ridge:
    """Ridge regression of one-hot targets on features, each class with the same weight in all.

    The second moments within classes are pooled, as in linear discriminant analysis, and the class
    means weighted alike, so that sums over everything suffice. One eigendecomposition serves all
    strengths.

    Args:
        sums: Of the features.
        intercept: Whether there is a bias; it comes from centring and is not shrunk.
    """

    def __init__(self, sums: ClassSums, intercept: bool) -> None:
        present = sums.counts > 0
        counts = sums.counts.clamp(min=1)
        means = sums.totals / counts[:, None]
        self.share = present.double() / present.sum()
        self.centre = self.share @ means if intercept else torch.zeros_like(means[0])
        self.intercept, self.present = intercept, present

        within = sums.scatter - (means.T * sums.counts) @ means
        within = within / sums.counts.sum()
        deviations = (means - self.centre) * present[:, None]  # (K, D)
        moments = within + (deviations.T * self.share) @ deviations
        targets = torch.diag(self.share) - self.share[:, None] * self.share  # centred one-hot
        variance, self.axes = torch.linalg.eigh(moments)
        self.variance = variance.clamp(min=0)
        self.along_axes = self.axes.T @ (deviations.T @ targets)  # (D, K)
        self.unit = within.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)

    def at(self, strength: float, quantize: Callable[[Tensor], Tensor]) -> Linear:
        """The classifier, in float32, whose scores are near 1 for an image's class and 0 for
        others.

        Its bias suits the weight on the levels of its layer, which need not lie evenly around 0.

        Args:
            strength: In the units of `STRENGTHS`.
            quantize: What the layer does to its weight.
        """
        shrunk = self.along_axes / (self.variance + strength * self.unit)[:, None]
        weight = (self.axes @ shrunk).T.float()
        if not self.intercept:
            return Linear(weight, None)
        bias = self.share - quantize(weight).double() @ self.centre
        bias[~self.present] = _NEVER
        return Linear(weight, bias.float())


@dataclass(frozen=True)
class Choice:
    """The strength that does best on images held out.

    Attributes:
        linear: The classifier, not scaled.
        strength: In the units of `STRENGTHS`.
        scores: (n, K) of the images held out, not scaled.
        accuracy: The mean of the classes' accuracies, in percent.
        loss: Cross-entropy of the scores at their best scale, every class with the same weight.
    """

    linear: Linear
    strength: float
    scores: Tensor
    accuracy: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better: accuracy, and of equals the loss decides."""
        return self.accuracy, -self.loss


def choose_strength(
    ridge: Ridge,
    strengths: Iterable[float],
    features: Tensor,
    labels: Tensor,
    quantize: Callable[[Tensor], Tensor],
) -> Choice:
    """The strength that is right most often on features held out, its weight quantized.

    Args:
        ridge: Fitted to other images.
        strengths: To choose from.
        features: (n, D) float32, as the quantized layer sees them.
        labels: (n,).
        quantize: What the layer does to its weight.
    """
    choices = []
    for strength in strengths:
        linear = ridge.at(strength, quantize)
        scores = linear.quantized(quantize)(features)
        _, loss = best_scale(scores, labels)
        accuracy = balanced_accuracy(scores, labels)
        choices.append(Choice(linear, strength, scores, accuracy, loss))
    return max(choices, key=lambda choice: choice.rank)


def balanced_accuracy(scores: Tensor, labels: Tensor) -> float:
    """The mean over classes of how many percent of their images have their largest score there."""
    classes = scores.shape[1]
    hits = (scores.argmax(1) == labels).double()
    of_class = torch.bincount(labels, minlength=classes).double()
    right = torch.bincount(labels, hits, minlength=classes)
    return 100 * (right / of_class)[of_class > 0].mean().item()


def best_scale(
    scores: Tensor, labels: Tensor, scales: Sequence[float] = _SCALES, *, smoothing: float = 0.0
) -> tuple[float, float]:
    """(scale, cross-entropy) of the factor that suits scores (n, K) best, classes weighted alike
    and labels smoothed."""
    counts = torch.bincount(labels, minlength=scores.shape[1])
    weights = (1.0 / counts.clamp(min=1)).float()
    losses = [
        F.cross_entropy(scale * scores, labels, weights, label_smoothing=smoothing).item()
        for scale in scales
    ]
    best = min(range(len(scales)), key=losses.__getitem__)
    return scales[best], losses[best]
