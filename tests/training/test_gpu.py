"""The kernels in Triton, on a GPU or by its interpreter, against torch's operations."""

import math

import pytest
import torch
from torch import Tensor

from ghnqat_sdk.training import gpu
from ghnqat_sdk.training.depthwise import Geometry, depthwise
from ghnqat_sdk.training.kernels import normalise_clip_round, round_activations, round_weight
from ghnqat_sdk.training.pooling import average_pool
from ghnqat_sdk.training.rounding import ActivationRounding, Clip

pytest.importorskip("triton")
# What it computes where a tile is empty, and does not store.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
in_both_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@pytest.fixture(autouse=True)
def _on_any_device(monkeypatch):
    monkeypatch.setattr(gpu, "runs_on", lambda *tensors: True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = (numbers(*shape) * 2 + 0.3).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def outcome(function, *inputs: Tensor) -> list[Tensor]:
    """What it gives of copies of some tensors, and their gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    y.backward(numbers(*y.shape, seed=9).to(y.dtype))
    return [y.detach(), *(x.grad for x in leaves)]


def agree(function, *inputs: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Whether `function(compiled, *inputs)` gives the same both ways, but for what rounds apart."""
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    both = [outcome(lambda *x, c=c: function(c, *x), *inputs) for c in (True, False)]
    for ours, theirs in zip(*both, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        off = (ours - theirs).abs().float()
        far = off > tolerance * (theirs.abs() + theirs.abs().max()).float()
        assert far.float().mean() < 0.003, (ours, theirs)


@in_both_dtypes
@pytest.mark.parametrize("levels", [0, 3, 15, 255])
@pytest.mark.parametrize("shape", [(6, 24, 9, 9), (40, 17), (3, 160, 3, 3)], ids=str)
def test_norm_clip_and_round(shape, levels, dtype):
    clip = {0: Clip(0.0, 6.0), 3: Clip(), 15: Clip(0.0), 255: Clip()}[levels]
    agree(
        lambda compiled, x, gain, shift: normalise_clip_round(
            x, gain, shift, 1e-5, clip, ActivationRounding(levels, 0.6), compiled
        ),
        image(*shape, dtype=dtype),
        numbers(shape[1], seed=1).abs() + 0.5,
        numbers(shape[1], seed=2),
        dtype=dtype,
    )


@in_both_dtypes
@pytest.mark.parametrize("levels", [3, 255])
def test_rounding_of_activations(levels, dtype):
    rounding = ActivationRounding(levels, 0.5)
    x = image(4, 20, 9, 9, dtype=dtype)
    agree(lambda compiled, x: round_activations(x, rounding, compiled), x, dtype=dtype)


@pytest.mark.parametrize(("sigmas", "levels"), [(math.inf, 255), (2.6, 15), (1.5, 3)])
@pytest.mark.parametrize("shape", [(48, 20, 3, 3), (10, 7)], ids=str)
def test_rounding_of_weights(shape, sigmas, levels):
    agree(
        lambda compiled, w: round_weight(w, sigmas, levels, torch.float32, compiled), image(*shape)
    )


GEOMETRIES = {
    "plain": (24, 3, Geometry((1, 1), (1, 1), (1, 1))),
    "strided": (16, 5, Geometry((2, 2), (2, 2), (1, 1))),
    "dilated, an odd width": (33, 3, Geometry((1, 1), (2, 2), (2, 2))),
    "even, unpadded": (16, 2, Geometry((2, 2), (0, 0), (1, 1))),
    "oblong": (8, 3, Geometry((2, 1), (0, 1), (1, 2))),
}


@in_both_dtypes
@pytest.mark.parametrize(("channels", "kernel", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_depthwise_convolution(channels, kernel, geometry, dtype):
    agree(
        lambda compiled, x, w: depthwise(x, w, geometry, compiled),
        image(3, channels, 9, 9, dtype=dtype),
        numbers(channels, 1, kernel, kernel, seed=3).to(dtype),
        dtype=dtype,
    )


def test_average_pool():
    x = image(2, 8, 7, 7)
    pool = torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(average_pool(pool, x), pool(x))


def test_they_are_for_gpus_alone(monkeypatch):
    monkeypatch.undo()
    assert not gpu.runs_on(torch.ones(2))
