import copy

import pytest
import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.qat import freeze_batch_norm, learn_steps, oscillation_loss
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float, to_fake_quantized, to_float
from ghnqat_sdk.quantization.layers import FakeQuantizedConv2d
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )


def calibrated(bits=(4, 4)) -> nn.Module:
    model = cnn()
    to_fake_quantized(model, bits, ClippedRanges())
    calibrate(model, [IMAGES])
    return model


def test_frozen_batch_norm_trains_as_it_evaluates():
    qmodel = freeze_batch_norm(calibrated())
    statistics = copy.deepcopy(qmodel[1].state_dict())
    expected = qmodel.eval()(IMAGES)
    trained = qmodel.train()(IMAGES + 0)
    assert torch.equal(trained, expected)
    trained.sum().backward()
    assert qmodel[1].weight.grad.abs().sum() > 0
    assert all(
        torch.equal(tensor, statistics[name]) for name, tensor in qmodel[1].state_dict().items()
    )
    freeze_batch_norm(qmodel, False)
    assert not torch.equal(qmodel(IMAGES[:4]), expected[:4])
    assert qmodel[1].num_batches_tracked == statistics["num_batches_tracked"] + 1


def test_frozen_batch_norm_is_calibrated_again():
    qmodel = freeze_batch_norm(calibrated()).train()
    before = qmodel[1].running_mean.clone()
    calibrate(qmodel, [IMAGES + 1])
    assert not torch.equal(qmodel[1].running_mean, before)
    assert torch.equal(qmodel(IMAGES), qmodel.eval()(IMAGES))


def test_freezing_needs_a_calibrated_model():
    model = cnn()
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        freeze_batch_norm(model)
    to_fake_quantized(model, (4, 4), ClippedRanges())
    with pytest.raises(ArgumentError, match="calibrate"):
        freeze_batch_norm(model)


def test_dampening_is_the_distance_of_the_weights_from_their_levels():
    qmodel = calibrated((2, 32))
    expected = 0.0
    for layer in (qmodel[0], qmodel[4]):
        levels = layer.weight_quantizer(layer.weight).detach()
        inside = (layer.weight > levels.min()) & (layer.weight < levels.max())
        expected += (layer.weight - levels)[inside].square().sum().item()
    total = oscillation_loss(qmodel)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    layer = qmodel[0]
    levels = layer.weight_quantizer(layer.weight).detach()
    outside = (layer.weight < levels.min()) | (layer.weight > levels.max())
    assert outside.any()
    assert not layer.weight.grad[outside].any()
    assert torch.allclose(layer.weight.grad[~outside], 2 * (layer.weight - levels)[~outside])


def test_dampening_draws_weights_to_their_levels():
    qmodel = calibrated((2, 2))
    learn_steps(qmodel)  # with fixed steps, so that the levels stay where they are
    before = oscillation_loss(qmodel).item()
    optimizer = torch.optim.SGD([layer.weight for layer in (qmodel[0], qmodel[4])], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        oscillation_loss(qmodel).backward()
        optimizer.step()
    assert oscillation_loss(qmodel).item() < 0.01 * before


def test_dampening_of_float_weights_is_zero():
    assert oscillation_loss(calibrated((32, 4))) == 0
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        oscillation_loss(cnn())


def test_from_float_and_back():
    model = cnn().eval()
    before = copy.deepcopy(model.state_dict())
    qmodel = from_float(model, {"0": (8, 8), "*": (2, 4)})
    assert type(model[0]) is nn.Conv2d
    assert type(qmodel[0]) is FakeQuantizedConv2d
    assert (qmodel[0].weight_quantizer.bits, qmodel[4].input_quantizer.bits) == (8, 4)
    again = to_float(qmodel)
    assert [type(module) for module in again.modules()] == [
        type(module) for module in model.modules()
    ]
    assert torch.equal(again.eval()(IMAGES), model(IMAGES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_from_float_gives_what_conversion_gives():
    direct = cnn()
    to_fake_quantized(direct, (4, 4), MinMaxRanges())
    mine = from_float(cnn(), ranges=MinMaxRanges())
    assert torch.equal(mine.train()(IMAGES), direct.train()(IMAGES))


def test_from_float_refuses_what_it_cannot_take():
    with pytest.raises(ArgumentError, match="fake-quantized already"):
        from_float(calibrated())
    with pytest.raises(ArgumentError, match="has no parameters"):
        from_float(nn.ReLU())
    with pytest.raises(ArgumentError, match=r"nn\.Module"):
        from_float("resnet18")
    with pytest.raises(ArgumentError, match="no layer has such a name"):
        from_float(cnn(), {"stem": (4, 4), "*": (4, 4)})


def test_an_uncalibrated_model_compiles_in_evaluation_mode():
    qmodel = cnn()
    to_fake_quantized(qmodel, (4, 4), ClippedRanges())
    compiled = torch.compile(qmodel.eval(), fullgraph=True, backend="aot_eager")
    got = compiled(IMAGES)
    qmodel[0].quantization.warn = False
    assert torch.allclose(got, qmodel(IMAGES), atol=1e-5)


def test_synchronized_batch_norm_is_calibrated():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(cnn())
    to_fake_quantized(model, (4, 4), ClippedRanges())
    twin = cnn()
    to_fake_quantized(twin, (4, 4), ClippedRanges())
    assert calibrate(model, [IMAGES]).norms == ("1",)
    calibrate(twin, [IMAGES])
    assert torch.equal(model.eval()(IMAGES), twin.eval()(IMAGES))
    assert type(to_float(model)[1]) is nn.SyncBatchNorm


def test_weights_beyond_the_levels_of_their_channel_add_nothing():
    model = cnn()
    with torch.no_grad():
        model[0].weight[0] *= 0.05
    qmodel = from_float(model, (4, 4), ranges=ClippedRanges(per_channel=True))
    weight = qmodel[0].weight
    levels = qmodel[0].weight_quantizer(weight).detach().flatten(1)
    oscillation_loss(qmodel).backward()
    rows, gradient = weight.detach().flatten(1), weight.grad.flatten(1)
    beyond = (rows < levels.amin(1, keepdim=True)) | (rows > levels.amax(1, keepdim=True))
    assert beyond[0].any()
    assert not gradient[beyond].any()
    assert torch.allclose(gradient[~beyond], 2 * (rows - levels)[~beyond])
