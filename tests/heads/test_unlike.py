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


def test_normalised_images_of_the_known_kind_are_not_remarked_on(data):
    batch = next(load_images(data, "train").batches(64))
    assert unlike(CONFIG, batch, gq.trace(strided(2, 2))) == []


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(8, 1, 32, 32), "1 channel; .* with 3"),
        (torch.rand(8, 3, 32, 32) * 255, "mean 12"),
        (torch.rand(8, 3, 32, 32) * 0.1, "deviation 0.02"),
        (torch.randn(2, 3, 224, 224), "224 pixels a side.* for 32"),
    ],
)
def test_what_differs_is_said(images, message):
    (found,) = unlike(CONFIG, (images, torch.zeros(len(images))))
    assert re.search(message, found)


def test_strides_that_leave_one_place_are_remarked_on():
    (found,) = unlike(CONFIG, torch.randn(8, 3, 32, 32), gq.trace(strided(4, 2, 2, 2)))
    assert "strides of 32" in found


def test_total_stride_is_that_of_the_longest_way():
    assert total_stride(gq.trace(strided(2, 1, 3))) == 6


def test_what_is_no_image_is_not_remarked_on():
    assert unlike(CONFIG, {"tokens": torch.zeros(4, 7)}) == []


def test_prediction_points_out_calibration_images_of_another_kind(small):
    batches = [torch.rand(64, 3, 32, 32) * 255]
    with pytest.warns(gq.UnfamiliarDataWarning, match="Normalize them") as caught:
        gq.predict_quantized_params(strided(2), hypernetwork=small, calibration=iter(batches))
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_prediction_with_usual_images_is_silent(small):
    batches = [torch.randn(64, 3, 32, 32)]
    gq.predict_quantized_params(strided(2), hypernetwork=small, calibration=batches)
