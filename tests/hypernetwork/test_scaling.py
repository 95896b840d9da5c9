"""Weights are as large as the products that an output sums are many."""

import pytest
import torch
from torch import nn

from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.scaling import weight_factor

LAYERS = {
    "conv": (lambda: nn.Conv2d(32, 8, 3), 2.0),
    "grouped": (lambda: nn.Conv2d(32, 8, 3, groups=4), 2.0),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, groups=32), 1.0),
    "transposed": (lambda: nn.ConvTranspose2d(32, 4, 4, stride=2), 2.0),
    "transposed, without overlap": (lambda: nn.ConvTranspose2d(32, 64, 2, stride=2), 2.0),
    "transposed, dense": (lambda: nn.ConvTranspose2d(32, 4, 3), 2.0),
    "transposed, oblong": (lambda: nn.ConvTranspose2d(32, 8, (2, 4), stride=(1, 2)), 2.0),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(32, 64, 4, stride=2, groups=8), 2.0),
    "transposed, 1d": (lambda: nn.ConvTranspose1d(32, 4, 4, stride=2), 2.0),
    "transposed, 3d": (lambda: nn.ConvTranspose3d(32, 4, 4, stride=2), 2.0),
}


@pytest.mark.parametrize(("make", "expected"), LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_outputs_have_the_variance_that_the_layer_is_to_give(make, expected):
    torch.manual_seed(0)
    layer = make()
    sides = (16,) * (layer.weight.ndim - 2)
    inputs = torch.randn(64 if len(sides) < 3 else 2, 32, *sides)
    # Two layers, of which the second is the classifier.
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(10))
    model(inputs)
    (node,) = (node for node in trace(model, inputs).nodes if node.module == "0" and node.quantized)
    (parameter,) = (each for each in node.parameters if each.role == "weight")
    layer.weight.normal_().mul_(weight_factor(node, parameter))
    layer.bias.zero_()
    inner = (..., *(slice(6, -6) for _ in sides))  # the rim sums less
    assert layer(inputs)[inner].square().mean().item() == pytest.approx(expected, rel=0.15)
