"""Each kernel, in torch's operations and compiled, against autograd of what it stands for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.ranges import min_max_range, ratio_clipped_range, sigma_clipped_range
from ghnqat_sdk.training.depthwise import Geometry, depthwise
from ghnqat_sdk.training.kernels import normalise_clip_round, round_activations, round_weight
from ghnqat_sdk.training.rounding import ActivationRounding, Clip

CHANNELS = (1, 3, 8, 24, 40, 56, 72)
"""Every width of a block of the compiled kernels, and what is left over."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLIPS = {"none": Clip(), "relu": Clip(0.0), "relu6": Clip(0.0, 6.0)}
EPS = 1e-3

both_ways = pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "torch"])
in_both_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(count: int, channels: int, side: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = numbers(count, channels, side, side, seed=seed) * 2 + 0.5
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def close(ours: Tensor, theirs: Tensor, dtype: torch.dtype, flips: float = 0.0) -> None:
    """Equal up to what the type holds, but for a share of values that may round the other way."""
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    theirs = theirs.float()
    far = (ours.float() - theirs).abs() > tolerance * (theirs.abs() + theirs.abs().max())
    assert far.float().mean() <= flips, (ours, theirs)


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, numbers(*y.shape, seed=9).to(y.dtype))


def batch_norm(x: Tensor, gain: Tensor, shift: Tensor, clip: Clip) -> Tensor:
    return F.batch_norm(x.float(), None, None, gain, shift, True, 0.0, EPS).clamp(*clip)


def gain_and_shift(channels: int) -> list[Tensor]:
    values = (numbers(channels, seed=1).abs() * 2 + 0.1, numbers(channels, seed=2))
    return [value.requires_grad_() for value in values]


# ---- batch norm, activation and rounding


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_norm_and_activation_are_those_of_torch_gradients_included(channels, clip, dtype, compiled):
    x, (gain, shift) = image(5, channels, 9, dtype), gain_and_shift(channels)
    ours = normalise_clip_round(x, gain, shift, EPS, clip, ActivationRounding(), compiled)
    theirs = batch_norm(x, gain, shift, clip)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)
    close(ours, theirs, dtype)
    found = gradients(ours, [x, gain, shift])
    assert [gradient.dtype for gradient in found] == [dtype, torch.float32, torch.float32]
    for mine, torchs in zip(found, gradients(theirs, [x, gain, shift]), strict=True):
        close(mine, torchs, dtype)


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize(
    "rounding",
    [ActivationRounding(3, 0.39), ActivationRounding(15, 0.58), ActivationRounding(255)],
    ids=str,
)
@pytest.mark.parametrize("channels", [3, 24, 56])
def test_rounding_after_a_norm_is_fake_quantization(channels, rounding, clip, dtype, compiled):
    x, (gain, shift) = image(4, channels, 8, dtype), gain_and_shift(channels)
    ours = normalise_clip_round(x, gain, shift, EPS, clip, rounding, compiled)
    y = batch_norm(x, gain, shift, clip)
    low, high = ratio_clipped_range(y, rounding.share)
    theirs = fake_quantize(y, low, high, int(math.log2(rounding.levels + 1)))
    assert len(ours.unique()) <= rounding.levels + 1
    close(ours, theirs, dtype, flips=0.005)
    for mine, torchs in zip(
        gradients(ours, [x, gain, shift]), gradients(theirs, [x, gain, shift]), strict=True
    ):
        close(mine, torchs, dtype, flips=0.02)


@both_ways
@pytest.mark.parametrize("channels", [1, 10, 40])
def test_a_norm_takes_features_without_positions(channels, compiled):
    x, (gain, shift) = numbers(7, channels).requires_grad_(), gain_and_shift(channels)
    ours = normalise_clip_round(x, gain, shift, EPS, Clip(0.0), ActivationRounding(), compiled)
    theirs = batch_norm(x, gain, shift, Clip(0.0))
    close(ours, theirs, torch.float32)
    close(gradients(ours, [x])[0], gradients(theirs, [x])[0], torch.float32)


@both_ways
def test_a_norm_takes_any_layout_and_gives_channels_last(compiled):
    x, (gain, shift) = image(3, 8, 5, torch.float32).detach(), gain_and_shift(8)
    last, first = (
        normalise_clip_round(one, gain, shift, EPS, Clip(), ActivationRounding(), compiled)
        for one in (x, x.contiguous())
    )
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, first)


@both_ways
def test_a_norm_of_double_precision_is_computed_without_the_compiled_kernels(compiled):
    x, (gain, shift) = numbers(4, 3, 5, 5).double().requires_grad_(), gain_and_shift(3)
    ours = normalise_clip_round(x, gain, shift, EPS, Clip(0.0), ActivationRounding(), compiled)
    assert ours.dtype == torch.float64
    close(ours, batch_norm(x, gain, shift, Clip(0.0)), torch.float32)


# ---- rounding alone


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("offset", [0.0, 7.0, -7.0])
@pytest.mark.parametrize("shape", [(7,), (5, 33), (3, 9, 4), (2, 5, 7, 3)], ids=str)
def test_rounded_activations_are_fake_quantized(shape, offset, dtype, compiled):
    x = (numbers(*shape) + offset).to(dtype).requires_grad_()
    ours = round_activations(x, ActivationRounding(15, 0.58), compiled)
    theirs = fake_quantize(x, *ratio_clipped_range(x.float(), 0.58), 4)
    assert (ours.dtype, ours.shape) == (dtype, shape)
    close(ours, theirs, dtype)
    (mine,), (torchs,) = gradients(ours, [x]), gradients(theirs, [x])
    assert mine.dtype == dtype
    assert torch.equal(mine, torchs)


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("sigmas", [1.5, 2.6, math.inf])
@pytest.mark.parametrize(
    "shape", [(10, 33), (24, 5, 3, 3), (40, 1, 5, 5), (200, 40, 1, 1)], ids=str
)
def test_rounded_weights_are_fake_quantized_and_gradients_stay_float32(
    shape, sigmas, dtype, compiled
):
    weight = numbers(*shape).requires_grad_()
    ours = round_weight(weight, sigmas, 15, dtype, compiled)
    of_range = min_max_range(weight) if math.isinf(sigmas) else sigma_clipped_range(weight, sigmas)
    theirs = fake_quantize(weight, *of_range, 4)
    assert (ours.dtype, ours.shape) == (dtype, shape)
    close(ours, theirs, dtype, flips=0.001)
    (mine,), (torchs,) = gradients(ours, [weight]), gradients(theirs.to(dtype), [weight])
    assert mine.dtype == torch.float32
    close(mine, torchs, torch.float32, flips=0.001)


@both_ways
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_tensor_keeps_its_value(value, compiled):
    x = torch.full((2, 3, 4, 4), value)
    torch.testing.assert_close(round_activations(x, ActivationRounding(15), compiled), x)
    torch.testing.assert_close(round_weight(x, math.inf, 15, torch.float32, compiled), x)
    torch.testing.assert_close(round_weight(x, 2.6, 15, torch.float32, compiled), x)


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [3, 8, 40])
def test_what_is_not_finite_never_becomes_a_number(channels, bad, dtype, compiled):
    """Else a network that exploded would be learned from."""
    x = image(2, channels, 5, dtype).detach()
    x[1, channels // 2, 2, 2] = bad
    gain, shift = gain_and_shift(channels)
    for rounding in (ActivationRounding(), ActivationRounding(15, 0.58)):
        y = normalise_clip_round(x, gain, shift, EPS, Clip(0.0, 6.0), rounding, compiled)
        assert not y.isfinite().all()
    assert not round_activations(x, ActivationRounding(15, 0.58), compiled).isfinite().all()
    assert not round_weight(x.float(), 2.6, 15, dtype, compiled).isfinite().all()


# ---- depthwise convolutions

GEOMETRIES = [
    (kernel, stride, padding, dilation)
    for kernel in ((3, 3), (5, 5), (7, 7), (2, 2), (4, 3), (1, 7))
    for stride in ((1, 1), (2, 2), (1, 2))
    for padding in ((0, 0), (1, 2), (3, 3))
    for dilation in ((1, 1), (2, 2))
    if all(d * (k - 1) < 11 + 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True))
]


@both_ways
@in_both_dtypes
@pytest.mark.parametrize("channels", [2, 8, 24, 41])
def test_depthwise_convolutions_of_any_geometry_have_torchs_gradients(channels, dtype, compiled):
    x = image(2, channels, 11, dtype)
    for kernel, *geometry in GEOMETRIES:
        weight = numbers(channels, 1, *kernel, seed=1).to(dtype).requires_grad_()
        ours = depthwise(x, weight, Geometry(*geometry), compiled)
        exact = [x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
        theirs = F.conv2d(*exact, None, *geometry, groups=channels)
        close(ours, theirs, dtype)
        for mine, torchs in zip(
            gradients(ours, [x, weight]), gradients(theirs, exact), strict=True
        ):
            assert mine.dtype == dtype
            close(mine, torchs, dtype)


@both_ways
def test_a_depthwise_convolution_of_an_image_that_wants_no_gradient(compiled):
    x, weight = image(2, 8, 6, torch.float32).detach(), numbers(8, 1, 3, 3).requires_grad_()
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    depthwise(x, weight, geometry, compiled).sum().backward()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1, groups=8).sum(), weight)
    close(weight.grad, expected, torch.float32)
