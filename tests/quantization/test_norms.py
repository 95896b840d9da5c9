"""Norms with running statistics: calibrated whatever their class, or named."""

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import ghnqat_sdk as gq
from ghnqat_sdk.errors import ReplacedWeightsWarning

IMAGES = 1 + 2 * torch.randn(128, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Labelled(nn.BatchNorm2d):
    label = "stage 1"


class Activated(nn.BatchNorm2d):
    """Batch norm and its activation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class ByFunction(nn.BatchNorm2d):
    """As timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        batch = self.training or (self.running_mean is None and self.running_var is None)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        variance = self.running_var if not self.training or self.track_running_stats else None
        x = F.batch_norm(x, mean, variance, self.weight, self.bias, batch, self.momentum, self.eps)
        return F.relu(x)


class Guarded(nn.BatchNorm2d):
    """Lets nobody take its statistics."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "running_mean" and value is None:
            raise AttributeError(name)
        super().__setattr__(name, value)


class ByOwnStatistics(nn.BatchNorm2d):
    """Reads its statistics whatever it is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.running_mean, self.running_var, self.weight, self.bias
        return F.relu(F.batch_norm(x, *numbers, self.training, self.momentum, self.eps))


class ByHand(nn.BatchNorm2d):
    """Computes with its statistics itself."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var = torch.lerp(self.running_var, variance, self.momentum)
        else:
            mean, variance = self.running_mean, self.running_var
        x = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + self.eps).sqrt()
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


KINDS = [Labelled, Activated, ByFunction, Guarded, ByOwnStatistics, ByHand, nn.SyncBatchNorm]


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(conv, norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_norm_of_another_class_evaluates_as_torchs(kind):
    outputs = []
    for norm in (nn.BatchNorm2d(8), kind(8)):
        qmodel = gq.from_float(network(norm), (8, 8)).eval()
        with pytest.warns(gq.UncalibratedWarning):
            before = qmodel(IMAGES)
        assert gq.calibrate(qmodel, [IMAGES]).norms == ("1",)
        outputs.append((before, qmodel(IMAGES)))
        assert type(gq.to_float(qmodel)[1]) is type(norm)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


class Conditional(nn.BatchNorm2d):
    """Its gain is given with what it normalizes."""

    def forward(self, x: Tensor, gain: Tensor, plus: float = 0.0) -> Tensor:
        return super().forward(x) * gain[:, None, None, None] + plus


@pytest.mark.parametrize(
    "call",
    [lambda norm, x, gain: norm(x, gain, plus=1), lambda norm, x, gain: norm(x=x, gain=gain) + 1],
)
def test_a_norm_that_takes_more_is_calibrated_on_what_it_normalizes(call):
    def forward(m, images: Tensor) -> Tensor:
        return m.head(call(m.norm, m.conv(images), images.amax((1, 2, 3))).mean((2, 3)))

    parts = {"conv": nn.Conv2d(3, 8, 3), "norm": Conditional(8), "head": nn.Linear(8, 5)}
    qmodel = gq.from_float(Model(forward, **parts), (32, 32))
    expected = qmodel.train()(IMAGES)
    qmodel.eval()
    with pytest.warns(gq.UncalibratedWarning):
        torch.testing.assert_close(qmodel(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert gq.calibrate(qmodel, [IMAGES]).norms == ("norm",)
    torch.testing.assert_close(qmodel(IMAGES), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_instance_norm_takes_the_mean_of_the_statistics_of_each_image(dims):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    images = IMAGES.reshape(128, 3, *{1: (64,), 2: (8, 8), 3: (4, 4, 4)}[dims])
    model = nn.Sequential(kind(3, track_running_stats=True), nn.Flatten(), nn.Linear(192, 2))
    qmodel = gq.from_float(model, (32, 32), example_inputs=images)
    gq.calibrate(qmodel, [images])
    flat = images.flatten(2)
    torch.testing.assert_close(qmodel[0].running_mean, flat.mean((0, 2)))
    torch.testing.assert_close(qmodel[0].running_var, flat.var(2, correction=0).mean(0))


def test_a_norm_with_fixed_statistics_keeps_them_and_is_named(small):
    norm = FrozenBatchNorm2d(8)
    norm.running_mean.fill_(0.5)
    model = network(norm)
    with pytest.warns(ReplacedWeightsWarning):
        qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert "keeps its running statistics" in gq.prediction_report(qmodel).unquantized["1"]
    with pytest.warns(gq.UnfamiliarDataWarning, match="statistics of '1' are of other weights"):
        report = gq.calibrate(qmodel, [IMAGES])
    assert (report.norms, [*report.stale]) == ((), ["1"])
    assert torch.equal(qmodel[1].running_mean, norm.running_mean)


def test_a_norm_by_function_keeps_its_statistics_and_is_named(small):
    def forward(m, x: Tensor) -> Tensor:
        x = F.batch_norm(m.conv(x), m.mean, m.variance, training=m.training)
        return m.head(F.conv2d(x, m.weight).mean((2, 3)))

    parts = {"conv": nn.Conv2d(3, 8, 3), "head": nn.Linear(8, 5)}
    model = Model(forward, **parts)
    model.weight = nn.Parameter(torch.randn(8, 8, 1, 1))
    model.register_buffer("mean", torch.zeros(8))
    model.register_buffer("variance", torch.ones(8))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, head="predict")
    why = gq.prediction_report(qmodel).unquantized[""]
    assert "conv2d computes with its weight outside" in why
    assert "normalizes with its running statistics" in why
    with pytest.warns(gq.UnfamiliarDataWarning, match="statistics of 'the model'"):
        gq.calibrate(qmodel, [IMAGES])
    model(IMAGES)
    trained = gq.from_float(model, (8, 8))
    gq.calibrate(trained, [IMAGES])  # they are its own
    assert why in str(gq.quantization_report(trained, IMAGES))


def test_norms_without_running_statistics_are_left_alone():
    for norm in (
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.InstanceNorm2d(8),
        nn.GroupNorm(2, 8),
    ):
        qmodel = gq.from_float(network(norm), (4, 4))
        report = gq.calibrate(qmodel, [IMAGES])
        assert report.norms == ()
        by_batch = isinstance(norm, nn.BatchNorm2d)
        assert report.batchwise == (("1",) if by_batch else ())
        assert ("statistics of the batch" in str(report)) == by_batch
        assert type(qmodel[1]) is type(norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_statistics_are_kept_in_the_type_of_the_norm(dtype):
    qmodel = gq.from_float(network(nn.BatchNorm2d(8)).to(dtype), (8, 8))
    gq.calibrate(qmodel, [IMAGES.to(dtype)])
    assert qmodel[1].running_var.dtype is dtype
    expected = F.conv2d(IMAGES, qmodel[0].weight.float(), padding=1).mean((0, 2, 3))
    torch.testing.assert_close(qmodel[1].running_mean.float(), expected, rtol=0.05, atol=0.05)


def test_float_networks_get_the_statistics_of_float_activations():
    """A network at 2 bits has others; a float network with those of its own is as in training."""
    qmodel = gq.from_float(network(nn.BatchNorm2d(8)), (2, 2))
    gq.calibrate(qmodel, [IMAGES])
    with_quantized, with_float = (
        gq.to_float(qmodel).eval(),
        gq.to_float(qmodel, calibration=[IMAGES]).eval(),
    )
    expected = gq.to_float(qmodel).train()(IMAGES)
    torch.testing.assert_close(with_float(IMAGES), expected, rtol=1e-3, atol=1e-3)
    assert (with_quantized(IMAGES) - expected).norm() > 10 * (with_float(IMAGES) - expected).norm()
    assert qmodel[0].weight_quantizer.bits == 2


def test_statistics_of_a_norm_that_averages_over_all_batches_are_not_replaced_by_the_next():
    qmodel = gq.from_float(network(nn.BatchNorm2d(8, momentum=None)), (8, 8))
    gq.calibrate(qmodel, [IMAGES])
    (norm,) = (module for module in qmodel.modules() if isinstance(module, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    qmodel.train()(IMAGES[:2] + 100)
    of_batch = 3 * (norm.running_mean - before) + before
    assert norm.num_batches_tracked == 3
    assert (norm.running_mean - before).norm() < 0.5 * (of_batch - before).norm()


@pytest.mark.parametrize("method", ["auto", "percentile"])
def test_one_value_per_channel_while_calibrating_asks_for_more_images(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4))
    image = torch.randn(1, 3, 8, 8)
    with pytest.raises(gq.ArgumentError, match=r"while calibrating.+batches of two or more images"):
        gq.calibrate(gq.from_float(model), [image], method=method)


@pytest.mark.filterwarnings("ignore::ghnqat_sdk.errors.UncalibratedWarning")
def test_one_value_per_channel_before_calibration_asks_for_it():
    qmodel = gq.from_float(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4))).eval()
    with pytest.raises(gq.ArgumentError, match=r"before calibration.+Call ghnqat_sdk\.calibrate"):
        qmodel(torch.randn(1, 3, 8, 8))
