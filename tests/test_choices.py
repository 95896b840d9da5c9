"""Arguments of many functions that are true or false."""

from typing import Any

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn() -> nn.Sequential:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    return nn.Sequential(*layers)


@pytest.fixture
def qmodel() -> nn.Module:
    qmodel = gq.from_float(cnn())
    gq.calibrate(qmodel, [IMAGES])
    return qmodel


@pytest.mark.parametrize("value", ["False", 1, None])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda model, value: gq.to_float(model, inplace=value), "inplace"),
        (lambda model, value: gq.qat.fix_steps(model, inplace=value), "inplace"),
        (lambda model, value: gq.qat.freeze_batch_norm(model, value), "frozen"),
        (lambda model, value: gq.export.pt2e_quantizer(model, signed=value), "signed"),
        (lambda model, value: gq.export.pt2e_quantizer(model, xnnpack=value), "xnnpack"),
        (
            lambda model, value: gq.export.export_onnx(model, "a.onnx", IMAGES, timing=value),
            "timing",
        ),
    ],
)
def test_what_is_neither_true_nor_false_is_refused(call, name, value, qmodel):
    before = [type(module) for module in qmodel.modules()]
    with pytest.raises(gq.ArgumentError, match=f"{name}={value!r} is a .*Write {name}=True"):
        call(qmodel, value)
    assert [type(module) for module in qmodel.modules()] == before
    assert not qmodel[1].quantization.frozen_norms


@pytest.mark.parametrize("function", [gq.from_float, gq.predict_quantized_params])
def test_a_float_model_is_not_changed_by_a_word_for_false(function):
    model: Any = cnn()
    with pytest.raises(gq.ArgumentError, match="inplace='False' is a str"):
        function(model, inplace="False")
    assert type(model[0]) is nn.Conv2d
