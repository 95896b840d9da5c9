import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghnqat_sdk.quantization.functional import fake_quantize, scale_and_zero_point, uniform_noise
from ghnqat_sdk.quantization.ranges import min_max_range, sigma_clipped_range

BITS = range(2, 9)


def native(x: torch.Tensor, low: float, high: float, bits: int) -> torch.Tensor:
    scale, zero_point = scale_and_zero_point(low, high, bits)
    return torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero_point), 0, 2**bits - 1)


def sqnr(x: torch.Tensor, y: torch.Tensor) -> float:
    return (10 * torch.log10(x.square().sum() / (x - y).square().sum())).item()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "low_high", [(-1.0, 1.0), (0.0, 3.0), (-0.3, 2.0), (-5.0, 0.0), (0.5, 2.0)]
)
def test_values_and_gradients_equal_torchs_own(bits, low_high):
    x = 2 * torch.randn(4096, generator=torch.Generator().manual_seed(bits))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(4096, generator=torch.Generator().manual_seed(1))
    a, b = fake_quantize(ours, *low_high, bits), native(theirs, *low_high, bits)
    a.backward(upstream)
    b.backward(upstream)
    assert torch.equal(a, b)
    assert torch.equal(ours.grad, theirs.grad)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    low=st.floats(-1e3, 0, width=32),
    span=st.floats(0.015625, 1e3, width=32),
    bits=st.sampled_from(BITS),
)
def test_any_values_and_ranges_equal_torchs_own(values, low, span, bits):
    x = torch.tensor(values)
    assert torch.equal(fake_quantize(x, low, low + span, bits), native(x, low, low + span, bits))


@pytest.mark.parametrize("bits", BITS)
def test_there_are_two_to_the_bits_levels_and_zero_is_one_of_them(bits):
    y = fake_quantize(torch.linspace(-0.37, 1.0, 5000), -0.37, 1.0, bits)
    assert y.unique().numel() == 2**bits
    assert (y == 0).any()


@pytest.mark.parametrize("constant", [0.0, 2.5, -2.5])
def test_constant_tensors_are_kept(constant):
    x = torch.full((5,), constant)
    torch.testing.assert_close(fake_quantize(x, *min_max_range(x), 4), x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_hidden_and_infinity_spoils_its_range(bad):
    x = torch.tensor([1.0, bad, -1.0])
    assert fake_quantize(x, *min_max_range(x), 4).isnan().any()
    assert fake_quantize(torch.tensor([float("nan"), 1.0]), -1.0, 1.0, 4).isnan().tolist() == [
        True,
        False,
    ]


def test_limits_that_learn_get_the_gradient_of_what_they_clip():
    """PACT: d out / d high is 1 where x > high, 0 inside."""
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0, 4.0])
    low, high = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    fake_quantize(x, low, high, 8).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4]))
    assert low.grad.item() == 1.0
    assert high.grad.item() == 11000.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_and_layout_are_kept(dtype):
    x = torch.randn(2, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    y = fake_quantize(x, -1.0, 1.0, 8)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.unique().numel() > 20


@pytest.mark.parametrize(
    ("bits", "sigmas", "decibels"), [(4, None, 15.0), (4, 2.6, 19.1), (2, None, 1.7), (2, 1.5, 8.2)]
)
def test_signal_to_noise_of_gaussian_weights_is_the_known_one(bits, sigmas, decibels):
    x = torch.randn(36_864, generator=torch.Generator().manual_seed(0))
    low, high = min_max_range(x) if sigmas is None else sigma_clipped_range(x, sigmas)
    assert sqnr(x, fake_quantize(x, low, high, bits)) == pytest.approx(decibels, abs=1.0)


def test_noise_is_uniform_over_one_step_and_clips():
    x = torch.zeros(20_000)
    scale, _ = scale_and_zero_point(-1.0, 1.0, 2)
    noise = uniform_noise(x, -1.0, 1.0, 2, torch.Generator().manual_seed(0)) / scale
    assert noise.abs().max() <= 0.5
    assert noise.std().item() == pytest.approx(12**-0.5, rel=0.02)
    assert uniform_noise(torch.full((9,), 100.0), -1.0, 1.0, 2).max() < 3


def test_noise_passes_gradients_inside_the_range_only():
    x = torch.tensor([0.1, 50.0], requires_grad=True)
    uniform_noise(x, -1.0, 1.0, 4).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
