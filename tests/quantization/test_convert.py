import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghnqat_sdk.errors import (
    ArgumentError,
    TraceError,
    UncalibratedWarning,
    UntracedWarning,
)
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.classes import LAYERS
from ghnqat_sdk.quantization.convert import from_float, to_fake_quantized, to_float
from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges

RANGES = MinMaxRanges()


def quantized(x: torch.Tensor, bits: int) -> torch.Tensor:
    return fake_quantize(x, x.detach().amin(), x.detach().amax(), bits)


def test_weights_and_inputs_of_first_and_last_layers_are_quantized():
    conv, linear = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 2)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    state = to_fake_quantized(model, (4, 8), RANGES)
    x = torch.randn(2, 3, 8, 8)
    hidden = (
        F.conv2d(quantized(x, 8), quantized(conv.weight, 4), conv.bias, 2, 1).relu().mean((2, 3))
    )
    expected = F.linear(quantized(hidden, 8), quantized(linear.weight, 4), linear.bias)
    torch.testing.assert_close(model(x), expected)
    assert state.bits == {"0": (4, 8), "4": (4, 8)}


LITTLE = {
    nn.Conv1d: (lambda: nn.Conv1d(2, 3, 3), (2, 2, 8)),
    nn.Conv2d: (
        lambda: nn.Conv2d(2, 4, 3, padding="same", groups=2, padding_mode="reflect"),
        (2, 2, 8, 8),
    ),
    nn.Conv3d: (lambda: nn.Conv3d(2, 3, 3), (2, 2, 4, 4, 4)),
    nn.ConvTranspose1d: (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 2, 8)),
    nn.ConvTranspose2d: (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1),
        (2, 2, 8, 8),
    ),
    nn.ConvTranspose3d: (lambda: nn.ConvTranspose3d(2, 3, 3), (2, 2, 4, 4, 4)),
    nn.Linear: (lambda: nn.Linear(4, 3), (2, 4)),
}


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_every_kind_of_layer_equals_itself_on_quantized_tensors(kind):
    make, shape = LITTLE[kind]
    reference, layer = make(), make()
    layer.load_state_dict(reference.state_dict())
    x = torch.randn(shape)
    to_fake_quantized(nn.Sequential(layer), (4, 4), RANGES)
    with torch.no_grad():
        reference.weight.copy_(quantized(reference.weight, 4))
    torch.testing.assert_close(layer.train()(x), reference(quantized(x, 4)))


def test_transposed_convolutions_take_an_output_size():
    layer = nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2))[0]
    to_fake_quantized(layer, (8, 8), RANGES)
    assert layer.train()(torch.randn(1, 2, 5, 5), output_size=[12, 12]).shape == (1, 3, 12, 12)


def test_state_dict_keys_hooks_and_identity_stay():
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), conv.__class__(4, 4, 1))
    calls, before = [], list(model.state_dict())
    conv.register_forward_hook(lambda *_: calls.append(1))
    to_fake_quantized(model, (4, 4), RANGES)
    model(torch.randn(2, 3, 5, 5))
    assert model[0] is conv
    assert calls == [1]
    assert list(model.state_dict()) == before


def test_to_float_restores_torchs_own_layers_and_values():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)
    ).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    to_fake_quantized(model, (4, 4), RANGES)
    to_float(model, inplace=True)
    assert [type(m) for m in model] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert fake_quantized_layers(model) == {}
    assert torch.equal(model(x), expected)


def test_what_a_layer_makes_of_its_weight_is_quantized():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    layer = Standardized(3, 4, 3).train()
    x, weight = torch.randn(2, 3, 6, 6), layer.weight.detach()
    to_fake_quantized(layer, (4, 4), RANGES)
    expected = F.conv2d(quantized(x, 4), quantized(weight - weight.mean(), 4), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert isinstance(layer, Standardized)


def test_attention_stays_float_and_is_named():
    state = to_fake_quantized(nn.Sequential(nn.MultiheadAttention(4, 2)), (4, 4), RANGES)
    assert set(state.unquantized) == {"0", "0.out_proj"}
    assert "MultiheadAttention" in state.unquantized["0"]


def test_evaluation_before_calibration_uses_batch_statistics_and_says_so_once():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    to_fake_quantized(model, (4, 4), RANGES)
    x = 5 + torch.randn(16, 3, 6, 6)
    with pytest.warns(UncalibratedWarning, match="calibrate") as caught:
        y = model(x)
        model(x)
    assert len(caught) == 1
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    assert model[1].num_batches_tracked == 0


def test_training_updates_running_statistics_without_a_warning():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    to_fake_quantized(model, (4, 4), RANGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(4, 3, 6, 6))
    assert model[1].num_batches_tracked == 1


def test_one_value_per_channel_before_calibration_is_explained():
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    to_fake_quantized(model, (4, 4), RANGES, warn=False)
    with pytest.raises(ArgumentError, match="calibrate"):
        model(torch.randn(1, 4))


def test_transposed_convolutions_keep_one_range_where_others_have_one_for_each_channel():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 2, 2))
    qmodel = from_float(model, bits=(4, 4), ranges=ClippedRanges(per_channel=True))
    ranges = [layer.weight_quantizer.range_of(layer.weight) for layer in qmodel]
    assert [tuple(low.shape) for low, _ in ranges] == [(4, 1, 1, 1), ()]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LazyConv2d(4, 3),
        lambda: nn.LazyLinear(4),
        lambda: nn.LazyBatchNorm2d(affine=False),
    ],
)
def test_lazy_modules_run_once_before(make, inplace):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), make())
    with pytest.raises(ArgumentError, match=r"'1\.\w+' of a lazy module .* model\(images\)"):
        from_float(model, inplace=inplace)
    assert type(model[0]) is nn.Conv2d
    images = torch.randn(64, 3, 8, 8)
    model(images)
    qmodel = from_float(model, inplace=inplace)
    calibrate(qmodel, [images])
    assert qmodel.eval()(images).isfinite().all()


class Pair(nn.Module):
    """Reads two images."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.behind = nn.Conv2d(4, 5, 3)

    def forward(self, x, y):
        return self.behind((self.left(x) + self.right(y)).relu()).mean((2, 3))


def test_layers_that_read_inputs_are_told_from_others_by_example_inputs():
    images = torch.randn(8, 3, 8, 8)
    with pytest.raises(TraceError, match="example inputs"):
        from_float(Pair(), example_inputs=images)
    qmodel = from_float(Pair(), (4, 4), example_inputs=(images, images))
    kinds = {n: x.input_quantizer.kind for n, x in fake_quantized_layers(qmodel).items()}
    assert kinds == {"left": "input", "right": "input", "behind": "activation"}
    calibrate(qmodel, [(images, images, torch.zeros(8))])
    assert qmodel.eval()(images, images).shape == (8, 5)


def test_without_a_graph_that_is_said():
    with pytest.warns(UntracedWarning, match=r"get the ranges of others.+example_inputs"):
        qmodel = from_float(Pair(), (4, 4))
    assert qmodel.left.input_quantizer.kind == "activation"
