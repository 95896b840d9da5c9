import copy

import pytest
import torch
from torch import nn

import ghnqat_sdk as gq
from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.lookup import bits_of, fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges


def cnn(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes),
    )


def test_bits_change_what_is_predicted_and_how_it_is_quantized(small):
    at4, at2 = (
        gq.predict_quantized_params(cnn(), bits, hypernetwork=small) for bits in ((4, 4), (2, 8))
    )
    assert not torch.allclose(at4[0].weight, at2[0].weight)
    assert (at2[0].weight_quantizer.bits, at2[0].input_quantizer.bits) == (2, 8)
    assert at2[0].weight_quantizer(at2[0].weight).unique().numel() <= 4


def test_layers_have_bits_of_their_own_and_are_predicted_for_them(small):
    mixed = gq.predict_quantized_params(cnn(), {"3": (2, 2), "*": (4, 4)}, hypernetwork=small)
    uniform = gq.predict_quantized_params(cnn(), (4, 4), hypernetwork=small)
    bits = bits_of(fake_quantized_layers(mixed))
    assert bits == {"0": (4, 4), "3": (2, 2), "6": (4, 4)}
    assert not torch.allclose(mixed[3].weight, uniform[3].weight)


def test_first_and_last_layers_at_eight_bits(small):
    qmodel = gq.predict_quantized_params(cnn(), (2, 2), first_last_bits=8, hypernetwork=small)
    assert {n: x.weight_quantizer.bits for n, x in fake_quantized_layers(qmodel).items()} == {
        "0": 8,
        "3": 2,
        "6": 8,
    }
    with pytest.raises(gq.ArgumentError, match="first_last_bits=9"):
        gq.predict_quantized_params(cnn(), first_last_bits=9, hypernetwork=small)


@pytest.mark.parametrize(
    ("bits", "first_last_bits"),
    [({"*": (2, 2)}, 8), ({"3": (2, 2), "*": (8, 8)}, None), ({"3": (2, 2), "*": (4, 4)}, 8)],
)
def test_the_same_bits_of_all_layers_are_predicted_alike_however_written(
    small, bits, first_last_bits
):
    pair, other = (
        gq.predict_quantized_params(cnn(), each, first_last_bits=ends, hypernetwork=small)
        for each, ends in (((2, 2), 8), (bits, first_last_bits))
    )
    assert all(map(torch.equal, pair.parameters(), other.parameters()))


def test_parametrized_layers_have_the_bits_of_their_name(small):
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    qmodel = gq.predict_quantized_params(
        nn.Sequential(layer, nn.ReLU(), nn.Conv2d(4, 4, 3)),
        {"2": (8, 8), "*": (2, 2)},
        hypernetwork=small,
    )
    assert qmodel[2].weight_quantizer.bits == 8
    assert gq.prediction_report(qmodel).predicted


def test_float_bits_leave_values_alone(small):
    qmodel = gq.predict_quantized_params(cnn(), (32, 32), hypernetwork=small).eval()
    images = torch.randn(8, 3, 16, 16)
    with pytest.warns(gq.UncalibratedWarning):
        quantized = qmodel(images)
    model = gq.to_float(copy.deepcopy(qmodel)).train()
    torch.testing.assert_close(model(images), quantized)


# ---- layers that read the images


class TwoStems(nn.Module):
    """Two layers read the images, one of them padded ones; a third what the others made."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 3)
        self.third = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.left(x).relu() + self.right(nn.functional.pad(x, (1, 1, 1, 1))).relu()
        return self.head(self.third(x).mean((2, 3)))


def kinds(qmodel: nn.Module) -> dict[str, str]:
    layers = fake_quantized_layers(qmodel)
    return {name: layer.input_quantizer.kind for name, layer in layers.items()}


def test_layers_that_read_the_images_have_a_range_of_images(small, tmp_path):
    rule = ClippedRanges(input_ratio={4: 0.9})
    qmodel = gq.predict_quantized_params(TwoStems(), (4, 4), ranges=rule, hypernetwork=small)
    expected = {"left": "input", "right": "input", "third": "activation", "head": "activation"}
    assert kinds(qmodel) == kinds(gq.from_float(TwoStems())) == expected
    low, high = qmodel.left.input_quantizer.range_of(torch.tensor([-1.0, 2.0]))
    assert (low.item(), high.item()) == pytest.approx((-0.9, 1.8))
    loaded = gq.load_quantized(TwoStems(), gq.save_quantized(qmodel, tmp_path))
    assert kinds(loaded) == expected
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.train()(x), qmodel.train()(x))
    gq.calibrate(qmodel, [x])
    learn_steps(qmodel)
    assert kinds(qmodel) == expected


class OfPairs(nn.Module):
    """Its inputs cannot be guessed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, pair):
        return self.conv(pair["left"] - pair["right"])


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_from_float_takes_models_that_cannot_be_traced():
    with pytest.warns(gq.UntracedWarning):
        qmodel = gq.from_float(OfPairs())
    assert kinds(qmodel) == {"conv": "activation"}
