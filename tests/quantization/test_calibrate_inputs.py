import pytest
import torch
from to_calibrate import make
from torch import nn

from ghnqat_sdk.errors import ArgumentError, UnfamiliarDataWarning
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges


class Difference(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, left, right):
        return self.norm(self.conv(left) - self.conv(right))


def test_several_inputs_come_as_dicts_and_the_batch_size_does_not_matter(images):
    reports = []
    for size in (len(images), 7):
        torch.manual_seed(0)
        model = Difference()
        to_fake_quantized(model, (4, 4), MinMaxRanges())
        pairs = zip(images.split(size), images.flip(0).split(size), strict=True)
        reports.append(calibrate(model, [{"left": left, "right": right} for left, right in pairs]))
    assert reports[0] == reports[1]
    assert reports[0].images == len(images)


@pytest.mark.parametrize(
    "batches",
    [
        [{}],
        [{"left": torch.zeros(2, 3, 8, 8), "right": torch.zeros(3, 3, 8, 8)}],
        [{"left": torch.zeros(2, 3, 8, 8)}, {"right": torch.zeros(2, 3, 8, 8)}],
        [{"left": "image"}],
    ],
)
def test_wrong_dicts_are_refused(batches):
    model = Difference()
    to_fake_quantized(model, (4, 4), MinMaxRanges())
    with pytest.raises(ArgumentError, match=r"calibrate got|missing .* argument|N = 3"):
        calibrate(model, batches)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, t, x):
        return self.conv(x * t)


def test_a_number_for_all_images_is_calibrated_with(images):
    model = Scaled()
    to_fake_quantized(model, (4, 4), MinMaxRanges())
    parts = zip((1.0, 1.0, 3.0), images.split(100), strict=True)
    batches = [{"t": torch.tensor(t), "x": x} for t, x in parts]
    report = calibrate(model, batches, method="min-max")
    scaled = torch.cat([batch["t"] * batch["x"] for batch in batches])
    assert report.ranges["conv"] == (scaled.min().item(), scaled.max().item())
    assert report.images == 256


@pytest.mark.parametrize("method", ["mean", "min-max", "percentile", "mse"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("index", [70, 255])
def test_one_bad_value_in_any_batch_is_refused_and_the_model_stays(images, method, value, index):
    model = make()
    calibrate(model, [images])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ranges = [model[i].input_quantizer.frozen_range for i in (0, 3, 6)]
    bad = images.clone()
    bad[index, 0, 0, 0] = value
    with pytest.raises(ArgumentError, match="finite"):
        calibrate(model, bad.split(64), method=method)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert [model[i].input_quantizer.frozen_range for i in (0, 3, 6)] == ranges
    assert model[0].quantization.calibrated


def test_a_clip_is_calibrated_by_its_frames(images):
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, clip):
            frames = self.norm(self.conv(clip.flatten(0, 1)))
            return frames.unflatten(0, clip.shape[:2])

    model = Frames()
    to_fake_quantized(model, (4, 8), MinMaxRanges())
    report = calibrate(model, [images.unflatten(0, (64, 4))], method="min-max")
    assert report.images == 64
    assert report.ranges["conv"] == (images.min().item(), images.max().item())
    alone = torch.cat([model.eval()(clip[None]) for clip in images[:8].unflatten(0, (2, 4))])
    torch.testing.assert_close(model(images[:8].unflatten(0, (2, 4))), alone)


def one_layer(bits):
    model = nn.Sequential(nn.Linear(8, 3))
    to_fake_quantized(model, (4, bits), ClippedRanges())
    return model


FAR = 1.7 + torch.rand(256, 8, generator=torch.Generator().manual_seed(0)) / 2


@pytest.mark.parametrize("far", [FAR, -FAR], ids=["above", "below"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_inputs_on_one_side_of_zero_are_told_apart_after_calibration(far, bits):
    model = one_layer(bits)
    assert calibrate(model, [far]).collapsed == {}
    assert model.eval()(far).std(0).min() > 0


def test_inputs_that_all_come_to_one_level_are_pointed_out():
    model = one_layer(2)
    with pytest.warns(UnfamiliarDataWarning, match=r"'0' lie between 1\.7 and 2\.2.*bits="):
        report = calibrate(model, [FAR])
    assert report.collapsed["0"] == (FAR.min().item(), FAR.max().item())
    assert "0: all that reached it has one level" in str(report)
