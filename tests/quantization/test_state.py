"""Models that are put together of several fake-quantized ones."""

import pytest
import torch
from torch import Tensor, nn

import ghnqat_sdk as gq

IMAGES = 1 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def composed(float_part: bool = False) -> nn.Sequential:
    """A body and a head that were made apart, at bits of their own."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5))
    features = torch.empty(2, 8, 6, 6)
    parts = [gq.from_float(body, (4, 4)), gq.from_float(head, (8, 8), example_inputs=features)]
    return nn.Sequential(*parts, *([nn.Linear(5, 5)] if float_part else []))


def alone(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(image[None]) for image in images])


@pytest.mark.parametrize("float_part", [False, True])
def test_every_part_is_calibrated(float_part):
    model = composed(float_part)
    report = gq.calibrate(model, [IMAGES])
    assert report.norms == ("0.1", "1.1")
    assert report.bits == {"0.0": 4, "1.0": 8, "1.3": 8}
    model.eval()
    torch.testing.assert_close(model(IMAGES), alone(model, IMAGES), rtol=1e-3, atol=1e-4)


def test_a_part_that_is_not_calibrated_is_refused_where_a_calibrated_model_is_needed():
    model = composed()
    gq.calibrate(model[0], [IMAGES])
    for function in (gq.qat.learn_steps, gq.qat.freeze_batch_norm):
        with pytest.raises(gq.ArgumentError, match=r"'1\.0' is not"):
            function(model)
    with pytest.warns(gq.UncalibratedWarning):
        model.eval()(IMAGES)


def test_a_part_says_for_itself_whether_it_is_calibrated():
    model = composed()
    gq.calibrate(model, [IMAGES])
    torch.testing.assert_close(model[0].eval()(IMAGES), alone(model[0], IMAGES))


def test_reports_of_the_whole_name_what_is_in_no_part(small):
    parts = [
        gq.predict_quantized_params(nn.Conv2d(3, 8, 3), hypernetwork=small),
        nn.Flatten(),
        nn.Linear(288, 5),
    ]
    report = gq.prediction_report(nn.Sequential(*parts))
    assert report.predicted == ("0.weight", "0.bias")
    assert report.kept == dict.fromkeys(("2.weight", "2.bias"), "not part of a predicted model")


def test_a_part_put_twice_is_calibrated_once():
    part = gq.from_float(nn.Conv2d(3, 3, 3, padding=1), (4, 4))
    model = nn.Sequential(part, nn.ReLU(), part)
    assert set(gq.calibrate(model, [IMAGES]).ranges) == {"0"}
    torch.testing.assert_close(model.eval()(IMAGES), alone(model, IMAGES))
