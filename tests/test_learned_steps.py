import copy
import pickle

import pytest
import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.qat import fix_steps, learn_steps
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import from_float, to_fake_quantized, to_float
from ghnqat_sdk.quantization.functional import (
    fake_quantize,
    learned_step_quantize,
    scale_and_zero_point,
)
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.quantization.report import quantization_report
from ghnqat_sdk.quantization.roundings import RoundingRule
from ghnqat_sdk.quantization.store import load_quantized, save_quantized

RANGES = ClippedRanges()
IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(64) % 5


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    )


def make(bits=(4, 4), ranges=RANGES) -> nn.Module:
    model = cnn()
    to_fake_quantized(model, bits, ranges)
    calibrate(model, [IMAGES])
    return model


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_is_fake_quantization_and_gradients_are_those_of_lsq(bits):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1), requires_grad=True)
    scale, zero_point = scale_and_zero_point(-1.0, 1.5, bits)
    scale.requires_grad_()
    y = learned_step_quantize(x, scale, int(zero_point), bits)
    torch.testing.assert_close(y, fake_quantize(x, -1.0, 1.5, bits), rtol=1e-5, atol=1e-6)
    incoming = torch.randn(1000, generator=torch.Generator().manual_seed(2))
    mine = torch.autograd.grad(y, (x, scale), incoming)

    ratio = x / scale  # the formula, with autograd
    lowest, levels = -int(zero_point), 2**bits - 1
    level = ratio.detach().round()
    ends = level.clamp(lowest, lowest + levels)
    rounded = torch.where(level == ends, level + (ratio - ratio.detach()), ends)
    expected = torch.autograd.grad(rounded * scale, (x, scale), incoming)
    torch.testing.assert_close(mine[0], expected[0])
    torch.testing.assert_close(mine[1], expected[1] / (1000 * levels) ** 0.5, rtol=1e-3, atol=1e-4)


def gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    loss = nn.functional.cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_gradients_of_parts_of_a_batch_add_up_to_that_of_the_whole():
    model = make(ranges=ClippedRanges(per_channel=True)).eval()
    learn_steps(model)
    whole = gradients(model, IMAGES, LABELS)
    parts = [gradients(model, IMAGES[i : i + 16], LABELS[i : i + 16]) for i in (0, 16, 32, 48)]
    for gradient, several in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(several) / 4, gradient, rtol=1e-3, atol=1e-6)


def test_learned_steps_start_where_calibration_ended():
    model = make().eval()
    before = model(IMAGES)
    steps = learn_steps(model)
    assert len(steps) == 4
    torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-4)
    assert {id(p) for p in steps} <= {id(p) for p in model.parameters()}


def test_training_moves_steps_and_lowers_the_loss():
    model = make((2, 2))
    steps = learn_steps(model)
    before = [step.item() for step in steps]
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model.train()(IMAGES), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(step.item() != old for step, old in zip(steps, before, strict=True))


def test_scales_stay_positive_whatever_a_step_of_the_optimizer_does():
    model = make()
    for step in learn_steps(model):
        with torch.no_grad():
            step.sub_(20.0)
    low, high = model[0].input_quantizer.range_of(IMAGES)
    assert low < 0 < high
    assert model.eval()(IMAGES).isfinite().all()


def test_fixed_steps_give_the_same_outputs_and_the_keys_of_the_float_model():
    model = make()
    for step in learn_steps(model):
        with torch.no_grad():
            step.add_(0.1)
    before = model.eval()(IMAGES)
    fixed = fix_steps(model)
    assert list(model.state_dict()) != list(cnn().state_dict())
    assert fix_steps(model, inplace=True) is model
    for each in (fixed, model):
        assert torch.equal(each(IMAGES), before)
        assert list(each.state_dict()) == list(cnn().state_dict())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fixed_step_rounds_the_same_values_up_to_the_last_bit(bits):
    like = FakeQuantizer(bits, "activation", ClippedRanges())
    for step in torch.rand(200, generator=torch.Generator().manual_seed(bits)).add(0.01).tolist():
        learned = LearnedStepQuantizer(like, -step, step * (2**bits - 2))
        fixed = FakeQuantizer(bits, "activation", ClippedRanges())
        fixed.freeze(*learned.range_of(torch.empty(0)))
        between = (torch.arange(-3.0, 2**bits) + 0.5) * learned.log_scale.exp().detach()
        near = torch.cat([between, *(between.nextafter(torch.tensor(end)) for end in (-1e3, 1e3))])
        assert torch.equal(learned(near), fixed(near))


def test_calibration_keeps_learned_steps():
    model = make()
    steps = [step.detach().clone() for step in learn_steps(model)]
    report = calibrate(model, [2 * IMAGES])
    assert report.ranges == {}
    assert report.norms == ("1",)
    now = [
        q.log_scale
        for x in fake_quantized_layers(model).values()
        for q in (x.weight_quantizer, x.input_quantizer)
    ]
    assert all(torch.equal(a, b) for a, b in zip(steps, now, strict=True))


def test_copies_pickles_and_files_keep_learned_steps(tmp_path):
    model = make()
    learn_steps(model)
    with torch.no_grad():
        model[0].input_quantizer.log_scale.add_(0.3)
    outputs = model.eval()(IMAGES)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IMAGES), outputs)
    loaded = load_quantized(cnn(), save_quantized(model, tmp_path))
    torch.testing.assert_close(loaded.eval()(IMAGES), outputs, rtol=1e-4, atol=1e-4)
    fresh = make()
    learn_steps(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(IMAGES), outputs)


def test_float_tensors_have_no_step_and_calling_again_gives_the_same():
    model = make((32, 4))
    steps = learn_steps(model)
    assert len(steps) == 2
    assert all(a is b for a, b in zip(steps, learn_steps(model), strict=True))
    assert len(quantization_report(model, IMAGES).layers) == 2


def test_an_uncalibrated_model_is_refused():
    model = cnn()
    with pytest.raises(ArgumentError, match="needs a model from predict_quantized_params"):
        learn_steps(model)
    to_fake_quantized(model, (4, 4), ClippedRanges())
    with pytest.raises(ArgumentError, match="needs a calibrated model"):
        learn_steps(model)


class Exact(RoundingRule):
    def quantize(self, x, low, high, bits):
        return x.clamp(low, high)


@pytest.mark.parametrize("rounding", ["noise", Exact()])
def test_another_rounding_is_refused_and_stays(rounding):
    qmodel = from_float(cnn(), (32, 4), rounding=rounding)
    calibrate(qmodel, [IMAGES])
    before = qmodel[4].input_quantizer.rounding
    with pytest.raises(ArgumentError, match="round to the nearest level, and '0' has"):
        learn_steps(qmodel)
    assert qmodel[4].input_quantizer.rounding is before
    nearest = from_float(to_float(qmodel), (32, 4))
    calibrate(nearest, [IMAGES])
    assert len(learn_steps(nearest)) == 2


def test_steps_of_channels_are_trained_fixed_and_saved(tmp_path):
    model = make((3, 4), ClippedRanges(per_channel=True)).eval()
    before = model(IMAGES)
    steps = learn_steps(model)
    assert [step.numel() for step in steps] == [6, 1, 5, 1]
    torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        steps[0].add_(torch.linspace(-0.2, 0.2, 6).view(-1, 1, 1, 1))
    trained = model(IMAGES)
    fixed = fix_steps(model)
    torch.testing.assert_close(fixed(IMAGES), trained, rtol=1e-4, atol=1e-4)
    assert list(fixed.state_dict()) == list(cnn().state_dict())
    loaded = load_quantized(cnn(), save_quantized(fixed, tmp_path)).eval()
    assert torch.equal(loaded(IMAGES), fixed(IMAGES))
    report = quantization_report(fixed, IMAGES)
    assert report.layers[0].weight.sqnr > 10


def test_weights_of_zero_keep_the_range_of_their_values():
    """A step of 1 would hold them at zero until one of them is above a half."""
    qmodel = make()
    nn.init.zeros_(qmodel[4].weight)
    learned = learn_steps(qmodel)
    assert len(learned) == 3
    assert not isinstance(qmodel[4].weight_quantizer, LearnedStepQuantizer)
    before = qmodel[4].weight.clone()
    nn.functional.cross_entropy(qmodel.train()(IMAGES), LABELS).backward()
    with torch.no_grad():
        qmodel[4].weight -= 0.01 * qmodel[4].weight.grad
    assert not torch.equal(qmodel[4].weight_quantizer(qmodel[4].weight), before)
