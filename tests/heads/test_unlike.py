import re

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.data import load_images
from ghnqat_sdk.heads.unlike import total_stride, unlike

CONFIG = gq.HypernetworkConfig()


def strided(*strides: int) -> nn.Module:
    body = [nn.Conv2d(3, 3, 3, stride, padding=1) for stride in strides]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))


def test_normalized_images_of_the_known_kind_are_not_remarked_on(data):
    batch = next(load_images(data, "train").batches(64))
    assert unlike(CONFIG, batch, gq.trace(strided(2, 2))) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(8, 1, 32, 32), "1 channel; .* with 3"),
        (torch.rand(8, 3, 32, 32) * 255, "mean 12"),
        (torch.rand(8, 3, 32, 32) * 0.1, "deviation 0.02"),
        (torch.randn(2, 3, 224, 224), "224 pixels a side.* for 32.*size=32"),
        (torch.full((2, 3, 32, 32), 5.0), "one value alone, 5. Check how they are read"),
    ],
)
def test_what_differs_is_said(images, message):
    (found,) = unlike(CONFIG, (images, torch.zeros(len(images))))
    assert re.search(message, found)


def test_strides_that_leave_one_place_are_remarked_on():
    (found,) = unlike(CONFIG, torch.randn(8, 3, 32, 32), gq.trace(strided(4, 2, 2, 2)))
    assert "strides of 32" in found


PIXELS = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255


@pytest.mark.parametrize(
    "images", [PIXELS, PIXELS / 255, PIXELS * 0.01 + 1e4, PIXELS[:, :1] - 128, PIXELS[:, :2] - 128]
)
def test_values_and_channels_that_are_written_as_advised_are_not_remarked_on(images):
    for advice in unlike(CONFIG, images):
        if change := re.search(r"images\[:, (\[.*?\])\]", advice):
            images = images[:, eval(change[1])]
    (advice,) = unlike(CONFIG, images)
    mean, deviation = map(float, re.search(r"\(images - (\S+)\) / (\S+)\.$", advice).groups())
    assert unlike(CONFIG, (images - mean) / deviation) == []


@pytest.mark.parametrize("side", [8, 32, 40, 224])
@pytest.mark.parametrize("strides", [(2,), (2, 2, 2, 2), (2, 2, 2, 2, 2)])
def test_images_that_are_resized_as_advised_are_not_remarked_on(side, strides):
    images, graph = torch.randn(4, 3, side, side), gq.trace(strided(*strides))
    for advice in unlike(CONFIG, images, graph):
        call = re.search(r"torch\.nn\.functional\.interpolate\(.*\)", advice)[0]
        images = eval(call, {"torch": torch, "images": images})
    assert [text for text in unlike(CONFIG, images, graph) if "values" not in text] == []


def test_sizes_up_to_the_largest_that_was_trained_on_are_known():
    images = CONFIG.images.model_copy(update={"largest": 128})
    config = CONFIG.model_copy(update={"images": images})
    graph = gq.trace(strided(2, 2, 2))
    for side in (32, 64, 224):
        assert unlike(config, torch.randn(2, 3, side, side), graph) == []
    (advice,) = unlike(config, torch.randn(2, 3, 500, 500), graph)
    assert re.search("500 pixels a side.* for 32 to 128.*size=128", advice)


def test_strides_that_no_size_suits_are_to_be_taken_out():
    (advice,) = unlike(CONFIG, torch.randn(4, 3, 32, 32), gq.trace(strided(4, 4, 4)))
    assert "layer.stride = (1, 1)" in advice
    assert "16 together, and resize to 32" in advice
    fewer = gq.trace(strided(1, 4, 4))
    assert unlike(CONFIG, torch.randn(4, 3, 32, 32), fewer) == []


def test_total_stride_is_that_of_the_longest_way():
    assert total_stride(gq.trace(strided(2, 1, 3))) == 6


def test_networks_that_scale_up_again_are_as_small_as_they_get():
    class Hourglass(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4))
            self.up = nn.ConvTranspose2d(3, 3, 2, 2)

        def forward(self, x):
            for down in self.down:
                x = nn.functional.interpolate(down(x), scale_factor=2.0)
            return self.up(self.down[0](x))

    assert total_stride(gq.trace(Hourglass(), torch.empty(1, 3, 32, 32))) == 2


def test_what_is_no_image_is_not_remarked_on():
    assert unlike(CONFIG, {"tokens": torch.zeros(4, 7)}) == []


def test_prediction_points_out_calibration_images_of_another_kind(small):
    batches = [torch.rand(64, 3, 32, 32) * 255]
    with pytest.warns(gq.UnfamiliarDataWarning, match="Normalize all batches") as caught:
        gq.predict_quantized_params(strided(2), hypernetwork=small, calibration=iter(batches))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_calibration_of_a_predicted_model_points_out_pixels_that_are_not_normalized(small, method):
    qmodel = gq.predict_quantized_params(strided(2), hypernetwork=small)
    with pytest.warns(gq.UnfamiliarDataWarning, match="Normalize all batches") as caught:
        gq.calibrate(qmodel, [PIXELS], method=method)
    assert [warning.filename for warning in caught] == [__file__]


def test_a_predicted_model_from_a_file_still_points_them_out(small, tmp_path):
    qmodel = gq.predict_quantized_params(strided(2), hypernetwork=small)
    loaded = gq.load_quantized(strided(2), gq.save_quantized(qmodel, tmp_path / "model"))
    with pytest.warns(gq.UnfamiliarDataWarning, match="mean 12"):
        gq.calibrate(loaded, [PIXELS])


@pytest.mark.filterwarnings("error")
def test_models_of_a_users_own_weights_may_take_any_values():
    gq.calibrate(gq.from_float(strided(2)), [PIXELS])


@pytest.mark.filterwarnings("error")
def test_prediction_with_usual_images_is_silent(small):
    batches = [torch.randn(64, 3, 32, 32)]
    gq.predict_quantized_params(strided(2), hypernetwork=small, calibration=batches)
