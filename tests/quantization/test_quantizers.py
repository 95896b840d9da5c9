import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ghnqat_sdk.quantization.functional import fake_quantize, learned_step_quantize
from ghnqat_sdk.quantization.quantizers import FakeQuantizer, LearnedStepQuantizer
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges, Ranges
from ghnqat_sdk.quantization.roundings import NoiseRounding


def test_min_max_ranges_ignore_kind_and_bits():
    x = torch.tensor([-1.0, 5.0])
    assert [
        tuple(map(float, MinMaxRanges().of(x, k, b)))
        for k in ("weight", "activation")
        for b in (2, 8)
    ] == [(-1, 5)] * 4


def test_clipped_ranges_depend_on_kind_and_bits():
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    ranges = ClippedRanges()
    widths = [
        float(high - low) for low, high in (ranges.of(x, "weight", bits) for bits in (2, 4, 8))
    ]
    assert widths == sorted(widths)
    assert float(ranges.of(x, "activation", 2)[1]) == pytest.approx(0.39 * x.max().item())
    assert float(ranges.of(x, "activation", 8)[1]) == x.max().item()


def test_ranges_are_told_apart_by_type_in_json():
    adapter = TypeAdapter(Ranges)
    for ranges in (MinMaxRanges(), ClippedRanges(activation_ratio={4: 0.5})):
        assert adapter.validate_json(adapter.dump_json(ranges)) == ranges


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_ratios_outside_their_domain_are_refused(ratio):
    with pytest.raises(ValidationError):
        ClippedRanges(activation_ratio={4: ratio})


def test_a_quantizer_follows_each_tensor_until_it_is_frozen():
    quantizer = FakeQuantizer(4, "activation", MinMaxRanges())
    small, large = torch.rand(100), 10 * torch.rand(100)
    assert torch.equal(quantizer(large), fake_quantize(large, large.min(), large.max(), 4))
    quantizer.freeze(0.0, 1.0)
    assert quantizer(large).max() == 1.0
    assert torch.equal(quantizer(small), fake_quantize(small, 0.0, 1.0, 4))
    assert "[0, 1]" in repr(quantizer)


def test_a_range_is_fixed_once_it_is_frozen_or_learned():
    quantizer = FakeQuantizer(2, "weight", MinMaxRanges(per_channel=True))
    assert quantizer.fixed_range is None
    low, high = torch.tensor([[-1.0], [0.0]]), torch.tensor([[2.0], [6.0]])
    learned = LearnedStepQuantizer(quantizer, low, high)
    quantizer.freeze(low, high)
    for fixed in (quantizer.fixed_range, learned.fixed_range):
        assert fixed[0] == pytest.approx((-1, 0))
        assert fixed[1] == pytest.approx((2, 6))


def test_a_quantizer_adds_nothing_to_a_state_dict():
    quantizer = FakeQuantizer(4, "weight", ClippedRanges())
    quantizer.freeze(-1.0, 1.0)
    assert quantizer.state_dict() == {}


@pytest.mark.parametrize("x", [torch.empty(0), torch.arange(5)])
def test_empty_and_integer_tensors_pass(x):
    assert FakeQuantizer(4, "activation", MinMaxRanges())(x) is x


def test_float_bits_pass_the_tensor_itself():
    x = torch.randn(5)
    assert FakeQuantizer(32, "weight", MinMaxRanges())(x) is x


def test_noise_replaces_rounding():
    x = torch.rand(1000)
    assert FakeQuantizer(2, "activation", MinMaxRanges(), NoiseRounding())(x).unique().numel() > 100


def test_a_frozen_quantizer_compiles_without_graph_breaks():
    quantizer = FakeQuantizer(4, "activation", MinMaxRanges())
    quantizer.freeze(-1.0, 1.0)
    x = torch.randn(64)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantizer(x))


WEIGHT = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * (
    torch.logspace(-1, 1, 6).view(-1, 1, 1, 1)
)
"""Of channels that differ a hundredfold."""
BY_CHANNEL = [MinMaxRanges(per_channel=True), ClippedRanges(per_channel=True)]


@pytest.mark.parametrize("ranges", BY_CHANNEL)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_range_for_each_channel_is_that_of_the_channel_alone(ranges, bits):
    together = FakeQuantizer(bits, "weight", ranges)(WEIGHT)
    alone = FakeQuantizer(bits, "weight", type(ranges)())
    assert torch.equal(together, torch.stack([alone(row) for row in WEIGHT]))
    noise = (together - WEIGHT).flatten(1).norm(dim=1) / WEIGHT.flatten(1).norm(dim=1)
    coarse = alone(WEIGHT)[0]
    assert noise.max() < (coarse - WEIGHT[0]).norm() / WEIGHT[0].norm()


def test_activations_have_one_range_where_weights_have_one_for_each_channel():
    low, high = ClippedRanges(per_channel=True).of(WEIGHT, "activation", 4)
    assert low.ndim == high.ndim == 0


def test_training_by_compiled_kernels_knows_no_ranges_of_channels():
    assert [ranges.sigmas_kept(4) for ranges in BY_CHANNEL] == [None, None]


def test_frozen_ranges_of_channels_stay_and_compile():
    quantizer = FakeQuantizer(4, "weight", MinMaxRanges(per_channel=True))
    expected = quantizer(WEIGHT)
    quantizer.freeze(*quantizer.range_of(WEIGHT))
    assert torch.equal(quantizer(WEIGHT), expected)
    assert quantizer(2 * WEIGHT).abs().max() <= expected.abs().max()
    assert quantizer.state_dict() == {}
    assert "6 channels" in repr(quantizer)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(WEIGHT), expected)


@pytest.mark.filterwarnings("ignore")
def test_traced_ranges_of_channels_give_the_same_values():
    quantizer = FakeQuantizer(4, "weight", MinMaxRanges(per_channel=True))
    quantizer.freeze(*quantizer.range_of(WEIGHT))
    traced = torch.jit.trace(quantizer, WEIGHT, check_trace=False)
    torch.testing.assert_close(traced(WEIGHT), quantizer(WEIGHT))


def test_a_step_for_each_channel_has_the_gradient_of_the_channel_alone():
    like = FakeQuantizer(4, "weight", MinMaxRanges(per_channel=True))
    learned = LearnedStepQuantizer(like, *like.range_of(WEIGHT))
    x = WEIGHT.clone().requires_grad_()
    incoming = torch.randn(WEIGHT.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(learned(x), (x, learned.log_scale), incoming)
    for index in range(len(WEIGHT)):
        row = WEIGHT[index].clone().requires_grad_()
        log_scale = learned.log_scale[index].detach().reshape(()).requires_grad_()
        y = learned_step_quantize(row, log_scale.exp(), learned.zero_point[index].reshape(()), 4)
        alone = torch.autograd.grad(y, (row, log_scale), incoming[index])
        torch.testing.assert_close(got[0][index], alone[0])
        torch.testing.assert_close(got[1][index].reshape(()), alone[1], rtol=1e-4, atol=1e-5)
