"""Quantization-aware training of layers whose forward makes the weight that is quantized."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.quantization.layers import used_weight

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight))


class Conditioned(nn.Linear):
    def forward(self, x, factor):
        return F.linear(x, self.weight * factor, self.bias)


def calibrated() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = Standardized(3, 8, 3, dilation=2)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), Cosine(128, 5))
    qmodel = gq.from_float(model, (4, 4))
    gq.calibrate(qmodel, [IMAGES])
    return qmodel


def seen_in_a_run(qmodel: nn.Module, layer: nn.Module) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    layer.weight_quantizer.observe = seen.append
    qmodel(IMAGES)
    layer.weight_quantizer.observe = None
    return seen[0]


@pytest.mark.parametrize("place", [0, 3])
def test_the_weight_is_the_one_that_a_run_quantizes(place):
    qmodel = calibrated()
    layer = qmodel[place]
    found = used_weight(layer)
    torch.testing.assert_close(found, seen_in_a_run(qmodel, layer))
    found.square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight_quantizer.observe is None


def test_a_forward_that_wants_more_has_its_own_weight():
    inputs = torch.empty(2, 4), torch.empty(())
    layer = gq.from_float(Conditioned(4, 3), example_inputs=inputs)
    assert used_weight(layer) is layer.weight


def test_learned_steps_start_from_the_range_of_that_weight():
    qmodel = calibrated().eval()
    before = qmodel(IMAGES)
    gq.qat.learn_steps(qmodel)
    torch.testing.assert_close(qmodel(IMAGES), before, rtol=1e-4, atol=1e-4)


def test_oscillation_is_measured_on_that_weight():
    qmodel = calibrated()
    weights = [seen_in_a_run(qmodel, qmodel[place]) for place in (0, 3)]
    expected = 0.0
    for place, weight in zip((0, 3), weights, strict=True):
        levels = qmodel[place].weight_quantizer(weight)
        inside = weight.clamp(levels.min(), levels.max())
        expected += (inside - levels).square().sum().item()
    assert gq.qat.oscillation_loss(qmodel).item() == pytest.approx(expected, rel=1e-4)
