import json
import math

import pytest
import torch
from functional_model import Model
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.quantization.report import quantization_report


@pytest.fixture
def images():
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make(bits=(4, 4)) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )
    to_fake_quantized(model, bits, ClippedRanges())
    return model


def test_tensors_are_those_that_the_layers_quantize(images):
    model = make()
    calibrate(model, [images])
    first = quantization_report(model, images).layers[0]
    assert first.name == "0"
    low, high = model[0].input_quantizer.frozen_range
    assert (first.activation.low, first.activation.high, first.activation.bits) == (low, high, 4)
    assert first.activation.scale == pytest.approx((high - low) / 15)
    quantized = fake_quantize(images, low, high, 4)
    noise = (quantized - images).square().sum()
    assert first.activation.sqnr == pytest.approx(
        10 * math.log10(images.square().sum() / noise), abs=1e-3
    )
    half = first.activation.scale / 2
    beyond = (images < quantized.min() - half) | (images > quantized.max() + half)
    assert first.activation.clipped == pytest.approx(beyond.float().mean().item(), abs=1e-6)
    weight = (
        quantization_report(make((2, 4)), images).layers[0].weight
    )  # 1.5 standard deviations of uniform values
    assert 0 < weight.clipped < 0.2


def test_output_error_is_that_of_one_layer_quantized_alone(images):
    model = make()
    calibrate(model, [images])
    report = quantization_report(model, images)
    model.eval()
    for name in ("0", "4"):
        for other in {"0", "4"} - {name}:
            layer = model.get_submodule(other)
            layer.weight_quantizer.bits = layer.input_quantizer.bits = 32
        one = model(images)
        model[0].weight_quantizer.bits = model[0].input_quantizer.bits = 32
        model[4].weight_quantizer.bits = model[4].input_quantizer.bits = 32
        exact = model(images)
        for index in (0, 4):
            model[index].weight_quantizer.bits = model[index].input_quantizer.bits = 4
        (layer,) = (layer for layer in report.layers if layer.name == name)
        error = (one - exact).square().sum() / exact.square().sum()
        assert layer.output_error == pytest.approx(error.item(), rel=1e-4)
    assert 0 < report.output_error < 1


def test_fewer_bits_cost_more(images):
    errors = [quantization_report(make((bits, bits)), images).output_error for bits in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_the_model_stays_as_it_is(images):
    model = make().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantization_report(model, images)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model[0].quantization.warn
    assert (model[0].weight_quantizer.bits, model[4].input_quantizer.bits) == (4, 4)
    assert model[0].input_quantizer.observe is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_table_json_and_plot(images, tmp_path):
    report = quantization_report(make((4, 32)), images)
    assert report.layers[0].activation is None
    text = str(report)
    assert len(text.splitlines()) == 2 + 2 * len(report.layers)
    assert "output error" in text
    facts = json.loads(report.to_json())
    assert facts["layers"][0]["weight"]["bits"] == 4
    assert facts["output_error"] == report.output_error
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5_000
    with pytest.raises(ArgumentError, match="cannot be written"):
        report.plot(tmp_path / "nowhere" / "report.png")


def test_what_cannot_be_measured_is_refused(images):
    with pytest.raises(ArgumentError, match="no fake-quantized layer"):
        quantization_report(nn.Conv2d(3, 4, 3), images)
    model = make()
    with pytest.raises(ArgumentError, match="could not be run on this batch"):
        quantization_report(model, images[:, :2])
    assert model.training
    assert model[0].weight_quantizer.bits == 4


def test_all_calls_of_a_shared_layer_are_measured():
    """The second call sees values a hundred times as large."""

    def forward(m, x):
        x = m.stem(x).relu()
        return m.shared(x) + m.shared(100 * x)

    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    model = Model(forward, stem=nn.Conv2d(3, 8, 3), shared=nn.Conv2d(8, 5, 3))
    to_fake_quantized(model, (32, 8), ClippedRanges())
    calibrate(model, [images])
    low, high = model.shared.input_quantizer.frozen_range
    with torch.no_grad():
        small = model.eval().stem(images).relu()
    seen = torch.cat([small, 100 * small])
    step = (max(high, 0) - min(low, 0)) / 255
    share = ((seen > high + step / 2) | (seen < min(low, 0) - step / 2)).double().mean().item()
    assert share > 0
    reported = quantization_report(model, images).layers[1].activation.clipped
    assert reported == pytest.approx(share, abs=1e-3)


def test_a_batch_that_is_not_finite_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    to_fake_quantized(model, (4, 4), ClippedRanges())
    with pytest.raises(ArgumentError, match="not finite"):
        quantization_report(model, torch.full((2, 3, 6, 6), float("nan")))
