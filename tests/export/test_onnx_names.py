"""What a user has called parameters and arguments: no such name is one of the exporter's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

NAMES = ["scale_0", "scale_1", "byte_0", "zero_point_0", "gate_unit", "lowest_float", "mul", "_0"]


class Named(nn.Module):
    """Channels times each of some parameters, between layers in integers and in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = (nn.Conv2d(n, 8, 1) for n in (3, 8, 8))
        for place, name in enumerate(NAMES):
            self.register_parameter(name, nn.Parameter(torch.full((8, 1, 1), 0.5 + place % 3)))

    def forward(self, scale_0: Tensor) -> Tensor:
        x = F.hardsigmoid(self.stem(scale_0))
        for name in NAMES:
            x = x * getattr(self, name)
        return self.last(F.relu(self.conv(x)))


def test_names_of_parameters_and_arguments_are_the_users(quantized, images, tmp_path):
    qmodel = quantized(Named(), {"stem": (8, 8), "conv": (32, 8), "last": (8, 8)})
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 1e-3
    assert "scale_0" in report.edges
