import copy
import sys
import warnings

import pytest
import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized, to_float
from ghnqat_sdk.quantization.lookup import fake_quantized_layers
from ghnqat_sdk.quantization.ranges import ClippedRanges

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torchao's, about itself
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e import qat_utils
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

# torchao says these to itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

RANGES = ClippedRanges()
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Norms to fold after a convolution and a transposed one, one that stays, and a branch with two
    readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6)
        self.side, self.sum_norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(
            self.sum_norm(self.deep(self.up_norm(self.up(x))) + self.side(x)).mean((2, 3))
        )


def quantized(bits, ranges=RANGES) -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.norm, model.up_norm, model.sum_norm):
        nn.init.normal_(norm.weight)  # some of them negative
    to_fake_quantized(model, bits, ranges)
    calibrate(model, [IMAGES])
    return model.eval()


@pytest.fixture
def no_search(monkeypatch):
    """Spares the search for torchao's own QAT of convolutions and norms, which finds none here."""
    monkeypatch.setattr(qat_utils, "_fold_conv_bn_qat_helper", lambda model, *_, **__: model)


def converted(qmodel, quantizer) -> nn.Module:
    program = torch.export.export(to_float(copy.deepcopy(qmodel)).eval(), (IMAGES,))
    return convert_pt2e(prepare_pt2e(program.module(), quantizer))


def test_a_converted_model_gives_the_outputs_of_the_model():
    assert_same_outputs((8, 8))


@pytest.mark.parametrize("bits", [(4, 8), (2, 2), (4, 32), (32, 4)])
def test_a_converted_model_gives_the_outputs_of_the_model_at_other_bits(bits, no_search):
    assert_same_outputs(bits)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 4)])
def test_signed_weights_run_in_the_integer_kernels_of_inductor(bits, no_search):
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer  # noqa: F401

    qmodel = classifier(bits)
    before = {name: tensor.clone() for name, tensor in qmodel.state_dict().items()}
    model = converted(qmodel, pt2e_quantizer(qmodel, signed=True))
    with torch.no_grad():
        lowered = lower_pt2e_quantized_to_x86(model, (IMAGES,))
        expected = qmodel(IMAGES)
        difference = (lowered(IMAGES) - expected).square().sum()
    assert difference < (1e-2 if bits[0] == 8 else 1e-4) * expected.square().sum()
    calls = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
    assert sum("qconv_pointwise" in call for call in calls) == 2
    assert sum("qlinear_pointwise" in call for call in calls) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in qmodel.state_dict().items())


def classifier(bits) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip
    nn.init.normal_(model[1].weight)  # some of them negative
    to_fake_quantized(model, bits, RANGES)
    calibrate(model, [IMAGES])
    return model.eval()


def test_ranges_of_channels_are_taken_over(no_search):
    assert_same_outputs((4, 8), ClippedRanges(per_channel=True))


def assert_same_outputs(bits, ranges=RANGES):
    qmodel = quantized(bits, ranges)
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        difference = (model(IMAGES) - qmodel(IMAGES)).abs()
    # An input next to the middle of two levels may round either way; all others agree.
    assert difference.median() < 1e-5
    assert difference.max() < 0.1
    stored = {tensor.dtype for name, tensor in model.state_dict().items() if "frozen" in name}
    assert stored == ({torch.uint8} if bits[0] < 32 else set())
    steps = [node for node in model.graph.nodes if "dequantize_per_tensor" in str(node.target)]
    assert len(steps) == (5 if bits[1] < 32 else 0)


def upsampling(*after: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), up, *after)
    to_fake_quantized(model, (4, 8), ClippedRanges())
    calibrate(model, [IMAGES])
    return model.eval()


def test_a_transposed_convolution_with_groups_is_converted(no_search):
    qmodel = upsampling(nn.ReLU())
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().median() < 1e-5


def test_a_norm_after_a_transposed_convolution_with_groups_is_refused():
    with pytest.raises(ArgumentError, match=r"fold the batch norm '3' into '2'.+2 groups"):
        pt2e_quantizer(upsampling(nn.BatchNorm2d(4)))


def test_learned_steps_are_taken_over(no_search):
    qmodel = quantized((4, 4))
    with torch.no_grad():
        for log_scale in learn_steps(qmodel):
            log_scale += 0.1
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().median() < 1e-5


def test_readers_of_one_value_keep_ranges_of_their_own(no_search):
    qmodel = quantized((4, 4))
    with torch.no_grad():
        log_scales = learn_steps(qmodel)
        for number, log_scale in enumerate(log_scales):
            log_scale += 0.1 * number
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().median() < 1e-5


def test_the_model_stays_as_it_is(no_search):
    qmodel = quantized((4, 4)).train()
    before = {name: tensor.clone() for name, tensor in qmodel.state_dict().items()}
    converted(qmodel, pt2e_quantizer(qmodel))
    assert qmodel.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in qmodel.state_dict().items())


def test_another_model_is_refused(no_search):
    quantizer, other = pt2e_quantizer(quantized((4, 4))), quantized((4, 4))
    with torch.no_grad():
        other.side.weight.add_(torch.randn_like(other.side.weight))
    with pytest.raises(ArgumentError, match="weight of 'side' is not that"):
        converted(other, quantizer)
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 3, 1)), (IMAGES,))
    with pytest.raises(ArgumentError, match="the fake-quantized model has not"):
        prepare_pt2e(program.module(), quantizer)


def test_bad_input_is_refused(monkeypatch, no_search):
    with pytest.raises(ArgumentError, match="predict_quantized_params"):
        pt2e_quantizer(Net())
    qmodel = quantized((4, 4))
    fake_quantized_layers(qmodel)["side"].input_quantizer.frozen_range = None
    with pytest.raises(ArgumentError, match="'side' has no range"):
        converted(qmodel, pt2e_quantizer(qmodel))
    qmodel.stem.quantization.calibrated = False
    with pytest.raises(ArgumentError, match="calibrate"):
        pt2e_quantizer(qmodel)
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ArgumentError, match=r"ghnqat-sdk\[torchao\]"):
        pt2e_quantizer(quantized((4, 4)))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.relu(self.one(x))).mean((2, 3))


class FloatParts(nn.Module):
    """A product with a parameter, and attention, which stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 4, 1, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = nn.functional.conv2d(torch.relu(self.stem(x)), self.weight).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def calibrated(model: nn.Module, bits, **rules) -> nn.Module:
    to_fake_quantized(model, bits, RANGES, **rules)
    calibrate(model, [IMAGES])
    return model.eval()


@pytest.mark.parametrize("two", [(2, 8), (32, 8)])
@pytest.mark.parametrize("signed", [False, True])
def test_layers_that_share_a_weight_keep_their_own_levels(two, signed, no_search):
    torch.manual_seed(0)
    qmodel = calibrated(Tied(), {"one": (4, 8), "two": two})
    model = converted(qmodel, pt2e_quantizer(qmodel, signed=signed))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().max() < 1e-3
    stored = [name for name in model.state_dict() if "frozen" in name]
    assert len(stored) == (2 if two[0] == 2 else 1)


def test_layers_that_share_weight_and_levels_store_one(no_search):
    qmodel = calibrated(Tied(), (4, 8))
    model = converted(qmodel, pt2e_quantizer(qmodel, signed=True))
    assert sum("frozen" in name for name in model.state_dict()) == 1
    assert not {"one.weight", "two.weight"} & set(model.state_dict())


def test_norms_after_one_weight_are_refused(no_search):
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))
    qmodel = calibrated(model, (4, 8))
    with pytest.raises(ArgumentError, match="the weight of '0', which is read several times"):
        converted(qmodel, pt2e_quantizer(qmodel))


def test_parts_that_are_float_stay_float(no_search):
    torch.manual_seed(0)
    qmodel = calibrated(FloatParts(), (4, 8))
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().max() < 1e-3
    assert sum("frozen" in name for name in model.state_dict()) == 2


def test_computed_weights_are_named(no_search):
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    qmodel = calibrated(nn.Sequential(conv, nn.ReLU()), (4, 8))
    with pytest.raises(ArgumentError, match=r"weight of '0' is computed.+remove_parametrizations"):
        converted(qmodel, pt2e_quantizer(qmodel))
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    nn.utils.parametrize.remove_parametrizations(conv, "weight")
    qmodel = calibrated(nn.Sequential(conv, nn.ReLU()), (4, 8))
    converted(qmodel, pt2e_quantizer(qmodel))
