"""Layers whose forward makes the weight that is quantized of the one that is trained."""

import pytest
import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.quantization.report import quantization_report

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019)."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class Attentive(nn.Conv2d):
    """Scales its weight by what it sees."""

    def forward(self, x):
        return self._conv_forward(x, self.weight * x.mean().sigmoid(), self.bias)


def net(kind: type[nn.Conv2d]) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.GroupNorm(2, 8), nn.ReLU()
    return nn.Sequential(kind(3, 8, 3), *middle, kind(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 4)])
def test_standardized_weights_are_stored_as_they_are_used(quantized, images, tmp_path, bits):
    report = export_onnx(quantized(net(Standardized), bits), tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 0.02
    assert report.convolutions == 2


def test_a_weight_that_follows_from_the_input_is_named(quantized, images, tmp_path):
    with pytest.raises(ArgumentError, match=r"'0' is not the same.*bits=\{'0': \(32, 32\)"):
        export_onnx(quantized(net(Attentive)), tmp_path / "m.onnx", images)


def test_what_that_error_says_to_write_works(quantized, images, tmp_path):
    bits = {"0": (32, 32), "3": (32, 32), "5": (8, 8)}
    report = export_onnx(quantized(net(Attentive), bits), tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 0.02


def test_a_report_measures_the_weight_that_is_used(quantized, images):
    measured = quantization_report(quantized(net(Standardized)), images).layers[0].weight
    assert measured.high - measured.low > 3  # in standard deviations, not in the trained weight's
