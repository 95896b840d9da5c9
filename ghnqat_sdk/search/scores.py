"""How well a network does on images, by the one tensor of scores among its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.state import evaluating

BATCH = 64


def top1(qmodel: nn.Module, images: ImageSet) -> float:
    """In percent.

    Raises:
        ArgumentError: as `accuracy_and_loss`.
    """
    return accuracy_and_loss(qmodel, images)[0]


@torch.no_grad()
def accuracy_and_loss(qmodel: nn.Module, images: ImageSet) -> tuple[float, float]:
    """Top-1 in percent, and mean cross-entropy.

    Raises:
        ArgumentError: there is not one tensor of scores among the model's outputs, or scores are
            not finite.
    """
    classes = len(images.classes)
    with evaluating(qmodel):
        batches = images.batches(BATCH)
        scores = torch.cat([scores_among(qmodel(x), len(y), classes) for x, y in batches])
    if not scores.isfinite().all():
        raise ArgumentError(
            "Its scores are not finite, with predicted and calibrated parameters. Look for a "
            "division or a logarithm that parameters of other sizes do not survive."
        )
    hits = int((scores.argmax(1) == images.labels).sum())
    loss = nn.functional.cross_entropy(scores.float(), images.labels).item()
    return 100 * hits / len(images), loss


def scores_among(output: Any, rows: int, classes: int) -> Tensor:
    """(rows, classes), the one tensor of that size among the outputs of a network.

    Raises:
        ArgumentError: none is, or several are.
    """
    tensors = list(tensors_in(output))
    scores = [x for x in tensors if x.shape[:1] == (rows,) and x.numel() == rows * classes]
    if len(scores) != 1:
        raise ArgumentError(
            f"Its outputs are of shapes {[tuple(x.shape) for x in tensors]}; expected one tensor "
            f"of scores, {(rows, classes)}, for the {classes} classes of the images. Build it with "
            f"as many outputs, or rank a network that returns its scores alone."
        )
    return scores[0].reshape(rows, classes)
