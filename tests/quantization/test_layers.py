"""Layers of classes of the user's, and calls that go past a layer's forward."""

import functools

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import ghnqat_sdk as gq
from ghnqat_sdk.quantization.lookup import fake_quantized_layers

IMAGES = 1 + torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Labelled(nn.Conv2d):
    label = "stage 1"


class Initialized(nn.Conv2d):
    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.1)


class Same(nn.Conv2d):
    """Pads by itself."""

    def __init__(self, cin: int, cout: int, kernel: int, padding: int) -> None:
        super().__init__(cin, cout, kernel)
        self.side = padding

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.side,) * 4)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class ByKeyword(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            weight=self.weight, input=x, bias=self.bias, stride=self.stride, padding=self.padding
        )


class Guarded(nn.Conv2d):
    """Lets nobody set what it does not know."""

    def __setattr__(self, name: str, value: object) -> None:
        if name.endswith("quantizer") or name in ("__class__", "quantization"):
            raise AttributeError(name)
        super().__setattr__(name, value)


class Busy(nn.Conv2d):
    """Has attributes with the names of our methods."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.quantized, self.macs, self.op = False, 3, "conv"
        self.fake_quantize_operands = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.quantized else super().forward(x)


def calibrated(kind: type[nn.Module], bits: tuple[int, int] = (2, 2)) -> nn.Module:
    conv = kind(3, 8, 3, padding=1)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in plain.parameters():
            nn.init.normal_(parameter, std=0.1)
    conv.load_state_dict(plain[0].state_dict())
    plain[0] = conv
    qmodel = gq.from_float(plain, bits)
    gq.calibrate(qmodel, [IMAGES])
    return qmodel.eval()


@pytest.mark.parametrize("kind", [Labelled, Initialized, Same, ByKeyword, Guarded, Busy])
def test_a_convolution_of_a_derived_class_is_quantized_as_torchs(kind):
    found, plain = calibrated(kind), calibrated(nn.Conv2d)
    torch.testing.assert_close(found(IMAGES), plain(IMAGES))
    assert isinstance(found[0], kind)
    assert type(gq.to_float(found)[0]) is kind


class Factors(nn.Linear):
    """Multiplies by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class LowRank(nn.Linear):
    """A layer with an adapter beside it."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout)
        self.down, self.up = nn.Parameter(torch.randn(cin, 2)), nn.Parameter(torch.zeros(2, cout))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down @ self.up


def head_of(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), kind(8, 10))


@pytest.mark.parametrize("kind", [Factors, LowRank])
def test_a_layer_that_multiplies_by_hand_is_named(small, kind):
    qmodel = gq.predict_quantized_params(head_of(kind), hypernetwork=small, example_inputs=IMAGES)
    assert "matmul" in gq.prediction_report(qmodel).unquantized["3"]


class Adapted(nn.Linear):
    """A layer with layers in it."""

    def __init__(self, inner: type[nn.Linear]) -> None:
        super().__init__(8, 10)
        self.down, self.up = nn.Linear(8, 2, bias=False), inner(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)) + super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(2 * x, self.weight, self.bias)


def linear_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What a fake-quantized layer is to compute, without a call of it."""
    return F.linear(layer.input_quantizer(x), layer.weight_quantizer(layer.weight), layer.bias)


@pytest.mark.parametrize("inner", [(32, 32), (3, 3)])
@pytest.mark.parametrize(("kind", "factor"), [(nn.Linear, 1), (Doubled, 2)])
def test_layers_in_a_layer_follow_their_own_bits_alone(kind, factor, inner):
    qmodel = gq.from_float(nn.Sequential(Adapted(kind)), {"0": (2, 2), "0.*": inner})
    vectors = 1 + IMAGES[:, 0, 0]
    report = gq.calibrate(qmodel, [vectors])
    layer = qmodel.eval()[0]
    expected = linear_of(layer, vectors)
    expected = linear_of(layer.up, factor * linear_of(layer.down, vectors)) + expected
    torch.testing.assert_close(qmodel(vectors), expected)
    alone = gq.calibrate(gq.from_float(nn.Sequential(nn.Linear(8, 10)), (2, 2)), [vectors])
    assert report.ranges["0"] == alone.ranges["0"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
)
def test_weights_that_are_made_are_quantized_as_they_are_used(wrap):
    layer = wrap(nn.Conv2d(3, 8, 3)).eval()
    layer(IMAGES)
    qmodel = gq.from_float(nn.Sequential(layer), (2, 32))
    gq.calibrate(qmodel, [IMAGES])
    weight = qmodel[0].weight_quantizer(layer.weight)
    assert weight.unique().numel() <= 4
    torch.testing.assert_close(qmodel.eval()(IMAGES), F.conv2d(IMAGES, weight, layer.bias))


def by_keyword(m, x: Tensor) -> Tensor:
    return m.head(input=m.norm(input=m.conv(input=x)).relu().mean((2, 3)))


def by_forward(m, x: Tensor) -> Tensor:
    return m.head.forward(m.norm.forward(m.conv.forward(x)).relu().mean((2, 3)))


def by_class(m, x: Tensor) -> Tensor:
    return m.head(type(m.norm).forward(m.norm, type(m.conv).forward(m.conv, x)).relu().mean((2, 3)))


def positional(m, x: Tensor) -> Tensor:
    return m.head(m.norm(m.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("forward", [by_keyword, by_forward, by_class])
def test_layers_calibrate_however_they_are_called(forward):
    models = []
    for each in (positional, forward):
        torch.manual_seed(0)
        parts = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8), "head": nn.Linear(8, 5)}
        models.append(gq.from_float(Model(each, **parts), (4, 4)))
    reports = [gq.calibrate(model, [IMAGES]) for model in models]
    assert reports[0] == reports[1]
    torch.testing.assert_close(*(model.eval()(IMAGES) for model in models))


@pytest.mark.parametrize(
    "replace",
    [
        lambda layer: functools.partial(nn.Conv2d.forward, layer),
        lambda layer: lambda x: nn.Conv2d.forward(layer, x),
    ],
)
def test_a_layer_whose_forward_was_replaced_stays_float_is_predicted_and_named(small, replace):
    model = head_of(nn.Linear)
    model[0].forward = replace(model[0])
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    report = gq.prediction_report(qmodel)
    assert report.unquantized == {"0": "its forward was replaced on the object"}
    assert {"0.weight", "0.bias"} <= set(report.predicted)
    assert list(fake_quantized_layers(qmodel)) == ["3"]
    expected = F.conv2d(IMAGES, qmodel[0].weight, qmodel[0].bias)
    torch.testing.assert_close(qmodel[0](IMAGES), expected)


class Taken(nn.Conv2d):
    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.weight_quantizer = nn.Identity()


def test_a_layer_with_a_quantizer_of_its_own_is_left_alone_and_named(small):
    model = nn.Sequential(Taken(3, 8, 3), nn.Conv2d(8, 10, 1))
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert "'weight_quantizer' of its own" in gq.prediction_report(qmodel).unquantized["0"]
    assert type(gq.to_float(qmodel)[0].weight_quantizer) is nn.Identity
