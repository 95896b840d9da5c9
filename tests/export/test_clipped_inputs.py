"""Clips between layers, and layers that clip what they read, for themselves alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.export import export_onnx
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def clipping(model: nn.Module, images: Tensor, bits=(8, 8)) -> nn.Module:
    """The model with layers that clip a tenth of what they read."""
    qmodel = from_float(model, bits)
    calibrate(qmodel, [images], method="percentile", percentile=90.0)
    return qmodel.eval()


class Skip(nn.Module):
    """A value that a convolution reads, and by `others` a sum, a score or another layer."""

    def __init__(self, others: str) -> None:
        super().__init__()
        self.others = others
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.pooled, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor):
        x = F.relu(self.stem(x))
        y = self.conv(x)
        if self.others == "sum":
            y = y + x
        elif self.others == "layer":
            y = y + self.pooled(F.max_pool2d(x, 3, 1, 1))
        y = self.last(F.relu(y)).mean((2, 3))
        return (y, x) if self.others == "output" else y


@pytest.mark.parametrize("others", ["none", "sum", "layer", "output"])
def test_a_layer_clips_for_itself_alone(others, images, tmp_path):
    qmodel = clipping(Skip(others), images)
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions
    assert report.agreement.relative_error < 1e-3


def test_one_pair_serves_layers_and_sums_where_no_layer_clips(images, tmp_path):
    qmodel = from_float(Skip("sum"), (8, 8))
    calibrate(qmodel, [images], method="min-max")
    report = export_onnx(qmodel.eval(), tmp_path / "m.onnx", images)
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == len(report.edges) and "Clip" not in kinds


def test_images_that_a_sum_reads_too_keep_two_ranges(images, tmp_path):
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x) + x).mean((2, 3))

    report = export_onnx(clipping(Images(), images), tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions == 2
    assert report.agreement.relative_error < 1e-3


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_layers_clip_what_stays_float(mode, images, tmp_path):
    padded = nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), padded, nn.ReLU(), nn.Conv2d(8, 4, 1))
    qmodel = clipping(model, images)
    report = export_onnx(qmodel, tmp_path / "m.onnx", images, float_edges=["*"])
    assert report.edges == {}
    assert report.agreement.relative_error < 1e-5


def test_layers_clip_what_others_read_with_fewer_bits(images, tmp_path):
    qmodel = clipping(Skip("layer"), images, {"pooled": (8, 4), "*": (8, 8)})
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.agreement.relative_error < 1e-3


def test_ranges_of_sums_are_those_of_what_layers_make_of_clipped_values(images, tmp_path):
    qmodel = clipping(Skip("sum"), images)
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    made: list[Tensor] = []
    qmodel.conv.register_forward_hook(lambda _, args, y: made.append(y))
    with torch.no_grad():
        qmodel(images)
    ends = made[0].min().item(), made[0].max().item()
    assert report.edges["conv.conv"] == pytest.approx(ends, rel=0.02)


@pytest.mark.parametrize("ends", [{"max": 0.3}, {"min": 0.0}, {"min": -0.1, "max": 0.3}])
def test_clamps_between_layers_have_one_end_or_two(ends, quantized, images, tmp_path):
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.stem(x).clamp(**ends))

    report = export_onnx(quantized(Clamped()), tmp_path / "m.onnx", images)
    assert report.integer_convolutions == report.convolutions == 2
    assert report.agreement.relative_error < 1e-3
