"""Classifiers are found by the graph however a model takes its images, and however it is copied."""

from typing import Any

import pytest
import torch
from functional_model import Model
from torch import Tensor, nn

import ghnqat_sdk as gq

IMAGES = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3


def rectified(m: Model, image: Tensor | list[Tensor]) -> Tensor:
    """Scores behind a ReLU, which are no layer's output."""
    x = torch.stack(image) if isinstance(image, list) else image
    return m.head(m.conv(x).relu()).relu().mean((2, 3))


def fitted(example: Any, batch: Any, **members: Any) -> str:
    """The layer that was fitted."""
    torch.manual_seed(0)
    layers = {"conv": nn.Conv2d(3, 8, 3), "head": nn.Conv2d(8, 3, 1)}
    qmodel = gq.from_float(Model(rectified, **layers, **members), example_inputs=example)
    (head,) = gq.fit_head(qmodel, [batch]).heads
    return head.layer


@pytest.mark.parametrize(
    ("example", "batch"),
    [
        (IMAGES, (IMAGES, LABELS)),
        ({"image": IMAGES}, {"image": IMAGES, "label": LABELS}),
        ((list(IMAGES),), (list(IMAGES), LABELS)),
    ],
    ids=["tensor", "by name", "listed"],
)
def test_a_classifier_behind_a_relu_is_found(example, batch):
    assert fitted(example, batch) == "head"


def test_so_is_one_of_a_model_that_holds_a_tensor_with_a_history():
    history = 2 * torch.ones(3, requires_grad=True)
    assert fitted(IMAGES, (IMAGES, LABELS), history=history) == "head"
