import pytest
import torch
from to_pt2e import IMAGES, RANGES, calibrated, converted, quantized, upsampling
from torch import nn

from ghnqat_sdk.export.pt2e import pt2e_quantizer
from ghnqat_sdk.qat import learn_steps
from ghnqat_sdk.quantization.calibrate import calibrate
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges

# torchao says these to itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


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


def test_a_transposed_convolution_with_groups_is_converted(no_search):
    qmodel = upsampling(nn.ReLU())
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().median() < 1e-5


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


def test_parts_that_are_float_stay_float(no_search):
    torch.manual_seed(0)
    qmodel = calibrated(FloatParts(), (4, 8))
    model = converted(qmodel, pt2e_quantizer(qmodel))
    with torch.no_grad():
        assert (model(IMAGES) - qmodel(IMAGES)).abs().max() < 1e-3
    assert sum("frozen" in name for name in model.state_dict()) == 2
