"""Batch norms that follow no layer: outputs are the model's, however uneven the channels are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float
from ghnqat_sdk.quantization.ranges import ClippedRanges

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Preactivated(nn.Module):
    """A norm of a sum whose channels differ by `spread`."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            for layer in (self.stem, self.conv):
                layer.weight *= torch.logspace(0, spread, 8).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(F.relu(self.norm(x + self.conv(F.relu(x))))).mean((2, 3))


def exported(model: nn.Module, x: Tensor, path):
    qmodel = from_float(model, (8, 8), ranges=ClippedRanges(per_channel=True)).eval()
    calibrate(qmodel, [x])
    report = export_onnx(qmodel, path, x)
    return report, [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(("spread", "in_float"), [(0.5, 0), (3.0, 1)])
def test_a_norm_between_integers_is_a_convolution_unless_its_channels_are_uneven(
    spread, in_float, images, tmp_path
):
    report, kinds = exported(Preactivated(spread), images, tmp_path / "m.onnx")
    assert report.agreement.relative_error < 1e-3
    assert (report.convolutions, report.integer_convolutions) == (3, 3 - in_float)
    assert (report.simulated, report.roundings.channels) == (in_float, 8 + 8 + 4)
    assert (kinds.count("BatchNormalization"), kinds.count("Conv")) == (in_float, 4 - in_float)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1.0, 10.0, 100.0)])
def test_a_norm_of_images_is_float(scales, images, tmp_path):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
    x = images * torch.tensor(scales).view(1, 3, 1, 1)
    report, kinds = exported(model, x, tmp_path / "m.onnx")
    assert report.agreement.relative_error < 1e-4
    assert report.integer_convolutions == report.convolutions == 1
    assert "BatchNormalization" in kinds


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.01, 100.0)])
def test_a_norm_between_linear_layers_is_float(scales, images, tmp_path):
    hidden = nn.Linear(192, 16)
    with torch.no_grad():
        hidden.weight *= torch.tensor(scales).repeat(8)[:, None]
    norm, last = nn.BatchNorm1d(16), nn.Linear(16, 5)
    model = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), norm, last)
    report, kinds = exported(model, images, tmp_path / "m.onnx")
    assert report.agreement.relative_error < 1e-3
    assert "BatchNormalization" in kinds
