"""A predicted start beside a random one: the same model at the same bits, calibrated and tested on
the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.demo.images import demo_images
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.layers import he_start
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.predict import predict_quantized_params
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float
from ghnqat_sdk.quantization.lookup import bits_of, fake_quantized_layers

BATCH = 50
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Score:
    """What a start gets right.

    Attributes:
        correct: Images of each class that it names rightly.
        images: Images of each class.
    """

    correct: tuple[int, ...]
    images: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Over all classes, in percent."""
        return 100 * sum(self.correct) / sum(self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy in percent, after Wilson (1927): so few images leave much
        open."""
        count, share = sum(self.images), self.accuracy / 100
        square = _NORMAL_95**2
        middle = (share + square / (2 * count)) / (1 + square / count)
        spread = math.sqrt(share * (1 - share) / count + square / (4 * count**2))
        reach = _NORMAL_95 * spread / (1 + square / count)
        return 100 * max(0.0, middle - reach), 100 * min(1.0, middle + reach)

    def __str__(self) -> str:
        low, high = self.interval
        right, count = sum(self.correct), sum(self.images)
        interval = f"95 % interval {low:.1f} to {high:.1f} %"
        return f"{self.accuracy:5.1f} %   {right:3} of {count} images, {interval}"


@dataclass(frozen=True)
class Comparison:
    """Scores of both starts.

    Attributes:
        predicted, random: The hypernetwork's start, and He's.
        classes: Names.
        calibration: Images that both were calibrated on, others than those of the scores.
    """

    predicted: Score
    random: Score
    classes: tuple[str, ...]
    calibration: int

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        starts = {"predicted": self.predicted, "random": self.random}
        scores = {
            name: {
                "accuracy": score.accuracy,
                "interval": score.interval,
                "correct": score.correct,
            }
            for name, score in starts.items()
        }
        images = {"calibration": self.calibration, "test": sum(self.predicted.images)}
        return {"images": images, "classes": self.classes, **scores}


def compare_starts(
    model: nn.Module,
    bits: Any,
    hypernetwork: GraphHypernetwork,
    *,
    first_last_bits: int | None = None,
) -> Comparison:
    """Test `model` with predicted parameters and with random ones; it stays as it is.

    Args:
        model: A classifier of ten classes for images (N, 3, 32, 32).
        bits: As in `predict_quantized_params`.
        hypernetwork: Predicts.
        first_last_bits: As in `predict_quantized_params`.

    Raises:
        ArgumentError: the model or the hypernetwork is of other classes.
        TraceError: the model cannot be run on such images.
    """
    train, test = demo_images("train"), demo_images("test")
    _check_classes(hypernetwork.config.num_classes, "The hypernetwork", len(test.classes))
    predicted = predict_quantized_params(
        model,
        bits,
        hypernetwork=hypernetwork,
        example_inputs=torch.empty(2, 3, 32, 32, device="meta"),
        first_last_bits=first_last_bits,
    )
    own_bits = bits_of(fake_quantized_layers(predicted))
    random = from_float(he_start(model, seed=0), own_bits, ranges=hypernetwork.config.ranges)
    batches = [images for images, _ in train.batches(BATCH)]
    scores = []
    for start in (predicted, random):
        calibrate(start, batches, progress=False)
        scores.append(_score(start.eval(), test))
    return Comparison(scores[0], scores[1], test.classes, len(train))


@torch.no_grad()
def _score(qmodel: nn.Module, images: ImageSet) -> Score:
    outputs = torch.cat([qmodel(batch) for batch, _ in images.batches(BATCH)])
    classes = len(images.classes)
    _check_classes(outputs.shape[1], "The model", classes)
    right = images.labels[outputs.argmax(1) == images.labels]
    correct, counts = right.bincount(minlength=classes), images.labels.bincount(minlength=classes)
    return Score(tuple(correct.tolist()), tuple(counts.tolist()))


def _check_classes(count: int, owner: str, expected: int) -> None:
    if count != expected:
        raise ArgumentError(
            f"{owner} tells {count} classes, and the images are of {expected}. Give one of "
            f"{expected}."
        )
