"""Whether a model answers as its head's scores say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import run_batch
from ghnqat_sdk.calls import Call, tensors_in
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.heads.classifiers import Classifier
from ghnqat_sdk.heads.labels import TRAIN_INSTEAD

_ROWS = 32  # images at least that a model must get right, which none does by chance
_BEST, _SECOND, _OTHERS = 8.0, 6.0, 4.0  # a sigmoid still tells them apart in 16 bits
_FEW = 4  # one place in so many has more, or less, of a class than all others
_SPREAD = 12.0  # between places, at most
_ABOVE_ZERO = 64.0
_SCALES = (1.0, 0.05)  # fitted scores are as near each other as the smaller ones


class Probe:
    """Scores that are known, in the place of those of a head: a best class for each image, by the
    mean over places and by no single place.

    Args:
        head: Whose scores are replaced.
        positive: Whether all of them are above 0, so that a ReLU leaves them as they are.
        scale: Of all scores.
        generator: Of the scores.
    """

    def __init__(
        self, head: Classifier, positive: bool, scale: float, generator: torch.Generator
    ) -> None:
        self.head, self.positive, self.scale, self.generator = head, positive, scale, generator
        self.best = torch.empty(0, dtype=torch.int64, device="cpu")

    def replace(self, _: Any, __: Any, output: Tensor) -> Tensor:
        """Scores of the shape of the head's `output`, (n, ..., K) or (n, K, ...)."""
        classes = self.head.classes
        places = math.prod(output.shape) // (len(output) * classes)
        scores = self._scores(len(output), places, classes)
        if not isinstance(self.head.layer, nn.Linear):
            scores = scores.mT
        return scores.reshape(output.shape).to(output)

    def _scores(self, rows: int, places: int, classes: int) -> Tensor:
        """(rows, places, classes) float32."""
        order = self._uniform(rows, classes).argsort(1)
        self.best = order[:, 0]
        means = _OTHERS - 2 * _BEST * self._uniform(rows, classes)
        means.scatter_(1, order[:, 1:2], _SECOND).scatter_(1, order[:, :1], _BEST)
        few = max(1, places // _FEW)
        chosen = self._uniform(rows, places, classes).argsort(1) < few
        apart = torch.where(chosen, places / few - 1, -1.0)  # 0 on average
        apart = apart * _SPREAD * (2 * self._uniform(rows, 1, classes) - 1)
        scores = means[:, None] + apart
        return self.scale * (scores + _ABOVE_ZERO if self.positive else scores)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device="cpu")

    def answered(self, outputs: Iterable[Tensor]) -> bool:
        """Whether one of a model's outputs has the best class of every image above all others."""
        found = self._like_scores(outputs)
        return self.head.classes == 1 or any(self._right(each.float().cpu()) for each in found)

    def _like_scores(self, outputs: Iterable[Tensor]) -> Iterator[Tensor]:
        """Each (n, K), or among the columns of several heads in one output (n, ..., K)."""
        rows, classes = len(self.best), self.head.classes
        for output in outputs:
            if output.ndim > 1 and len(output) == rows and output.is_floating_point():
                if output.numel() == rows * classes:
                    yield output.reshape(rows, classes)
                elif output.ndim == 2 and output.shape[1] > classes:
                    yield output.unfold(1, classes, 1)

    def _right(self, scores: Tensor) -> bool:
        first, second = scores.topk(2).values.unbind(-1)
        best = self.best.view(-1, *[1] * (first.ndim - 1))
        right = (scores.argmax(-1) == best) & (first > second)
        return bool(right.all(0).any())


def require_own_scores(
    qmodel: nn.Module, heads: list[Classifier], rectified: set[str], call: Call
) -> None:
    """Run a model on scores that are known, to see that it answers with their mean over the places
    of an image.

    What keeps their order may follow: a softmax, a sigmoid, a temperature.

    Args:
        qmodel: In evaluation mode.
        heads: That `call` reaches, each once.
        rectified: Names of those whose scores are to be above 0, with a ReLU behind them.
        call: One batch.

    Raises:
        ArgumentError: it does not.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    positive = [head.name in rectified and head.layer.bias is not None for head in heads]
    for scale in _SCALES * math.ceil(_ROWS / call.rows):
        pairs = zip(heads, positive, strict=True)
        probes = [Probe(head, above, scale, generator) for head, above in pairs]
        outputs = _run_probed(qmodel, call, probes)
        for probe in probes:
            if not probe.answered(outputs):
                raise ArgumentError(_refusal(probe.head, outputs))


def _run_probed(qmodel: nn.Module, call: Call, probes: list[Probe]) -> list[Tensor]:
    """What the model returns with known scores."""
    with ExitStack() as stack:
        for probe in probes:
            handle = probe.head.layer.register_forward_hook(probe.replace)
            stack.callback(handle.remove)
        return list(tensors_in(run_batch(qmodel, call)))


def _refusal(head: Classifier, outputs: list[Tensor]) -> str:
    shapes = ", ".join(str(tuple(output.shape)) for output in outputs) or "no tensor"
    return (
        f"The model's output, {shapes}, does not rank the {head.classes} classes as {head.name!r} "
        f"does, by the mean of its scores over the places of an image, so that a fit to them would "
        f"not be the model's own. Return the scores, or scores.mean((2, 3)) of a map. "
        f"{TRAIN_INSTEAD}"
    )
