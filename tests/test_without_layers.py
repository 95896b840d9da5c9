"""A model in which there is nothing to quantize."""

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def by_function() -> nn.Module:
    weight = nn.Parameter(torch.randn(10, 3, 3, 3))
    return Model(lambda m, x: F.conv2d(x, m.weight).mean((2, 3)), weight=weight)


MODELS = {
    "by function": (by_function, "parameters in Model alone"),
    "a norm": (lambda: nn.Sequential(nn.BatchNorm2d(3)), "parameters in BatchNorm2d alone"),
    "nothing": (lambda: nn.Sequential(nn.ReLU()), "no parameters"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("bits", [(4, 4), {"*": (4, 4)}], ids=["pair", "mapping"])
def test_a_prediction_says_what_the_model_has_and_what_to_write(small, kind, bits):
    make, found = MODELS[kind]
    with pytest.raises(gq.ArgumentError, match=f"predict_quantized_params needs.*{found}"):
        gq.predict_quantized_params(make(), bits, hypernetwork=small, example_inputs=IMAGES)


@pytest.mark.parametrize("kind", MODELS)
def test_so_does_a_conversion(kind):
    make, found = MODELS[kind]
    with pytest.raises(gq.ArgumentError, match=f"from_float needs.*{found}.*nn.Conv2d"):
        gq.from_float(make())


def test_float_parameters_are_predicted_all_the_same(small):
    qmodel = gq.predict_quantized_params(
        by_function(), (32, 32), hypernetwork=small, example_inputs=IMAGES, head="predict"
    )
    assert gq.prediction_report(qmodel).predicted == ("weight",)


@pytest.mark.parametrize("kind", MODELS)
def test_calibration_wants_a_fake_quantized_model(kind):
    with pytest.raises(gq.ArgumentError, match="no fake-quantized layer"):
        gq.calibrate(MODELS[kind][0](), [IMAGES])
