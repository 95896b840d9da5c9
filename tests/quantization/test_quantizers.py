import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.quantizers import FakeQuantizer
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
