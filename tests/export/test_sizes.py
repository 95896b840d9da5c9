"""Which sizes a file is right for, as `report.dynamic` says."""

import pytest
import torch
import torch.nn.functional as F
from small_networks import Pointwise
from torch import nn

from ghnqat_sdk.export import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Pooled(nn.Module):
    """A pooling whose window follows the size, or a branch that does."""

    def __init__(self, size: int, limit: int | None) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.size, self.limit = size, limit

    def forward(self, x):
        x = F.relu(self.stem(x))
        if self.limit is not None and x.shape[2] > self.limit:
            x = F.max_pool2d(x, 2)
        return F.relu(self.last(F.adaptive_avg_pool2d(x, self.size))).mean((2, 3))


@pytest.mark.parametrize(
    ("size", "limit", "dynamic"),
    [(1, None, ("batch", "height", "width")), (2, None, ("batch",)), (1, 7, ("batch",))],
)
def test_sizes_that_the_graph_would_get_wrong_are_not_promised(
    size, limit, dynamic, quantized, images, tmp_path
):
    report = export_onnx(quantized(Pooled(size, limit), (4, 8)), tmp_path / "model.onnx", images)
    assert report.dynamic == dynamic


class Branching(Pointwise):
    """Another way from a size on, far from that of the batch."""

    def __init__(self, place: int, limit: int) -> None:
        super().__init__()
        self.place, self.limit = place, limit

    def forward(self, x):
        outputs = super().forward(x)
        return outputs * 2 if x.shape[self.place] > self.limit else outputs


@pytest.mark.parametrize(
    ("place", "limit", "dynamic"),
    [(3, 30, ("batch",)), (3, 6, ("batch",)), (0, 40, ()), (0, 8, ())],
)
def test_a_branch_by_size_is_promised_for_no_other_size(
    place, limit, dynamic, quantized, images, tmp_path
):
    report = export_onnx(quantized(Branching(place, limit)), tmp_path / "m.onnx", images)
    assert report.dynamic == dynamic


def test_one_image_of_a_batch_of_limited_size_can_be_exported(quantized, images, tmp_path):
    report = export_onnx(quantized(Branching(0, 40)), tmp_path / "m.onnx", images[:1])
    assert report.dynamic == ()


def test_a_model_of_one_size_with_some_slack_is_of_one_size(quantized, images, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    qmodel = quantized(model)
    with torch.no_grad():
        assert qmodel(images[..., :7, :7]).shape == (16, 5)
    report = export_onnx(qmodel, tmp_path / "m.onnx", images)
    assert report.dynamic == ("batch",)


def test_last_features_of_one_pixel_are_no_rule(quantized, images, tmp_path):
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, 4, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 4, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    )
    report = export_onnx(quantized(model), tmp_path / "m.onnx", images)
    assert report.dynamic == ("batch", "height", "width")


def test_a_batch_of_fixed_size_may_be_large(quantized, images, tmp_path):
    class Unrolled(Pointwise):
        def forward(self, x):
            y = super().forward(x)
            return torch.stack([y[i] * 1.5 for i in range(len(x))])

    many = images.repeat(2, 1, 1, 1)[:20]
    report = export_onnx(quantized(Unrolled()), tmp_path / "m.onnx", many, timing=True)
    assert report.dynamic == ()
    assert min(report.milliseconds) > 0
