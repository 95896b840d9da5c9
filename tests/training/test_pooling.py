import pytest
import torch
from torch import nn

from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.training import gpu
from ghnqat_sdk.training.compute import ComputeConfig, Setting
from ghnqat_sdk.training.pooling import average_pool, corner
from ghnqat_sdk.training.steps import Pass, Slot, pool


def image() -> torch.Tensor:
    x = torch.randn(2, 8, 7, 6, generator=torch.Generator().manual_seed(0))
    return x.to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.AvgPool2d((1, 4), ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
    ],
    ids=str,
)
def test_average_pools_and_their_gradients_are_those_of_torch(pool: nn.AvgPool2d):
    x = image()
    pooled, expected = average_pool(pool, x), pool(x)
    torch.testing.assert_close(pooled, expected)
    along = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(y, x, along)[0] for y in (pooled, expected))
    torch.testing.assert_close(ours, theirs)


def test_kernels_of_gpus_are_not_asked_for_where_nothing_is_to_be_compiled(monkeypatch):
    monkeypatch.setattr(gpu, "runs_on", lambda *_: pytest.fail("asks for compiled kernels"))
    x, module = image(), nn.AvgPool2d(2)
    setting = Setting((4, 4), ClippedRanges(), compute=ComputeConfig(compile=False))
    pooled = pool(module, Slot(0), Pass({0: x}, {}, setting))
    ours, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (pooled, module(x)))
    torch.testing.assert_close(ours, theirs)


def test_counts_are_exact_in_half_precision():
    ones = torch.ones(1, 16, 8, 8, dtype=torch.bfloat16)
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    assert torch.equal(average_pool(pool, ones), ones)


def test_a_corner_has_the_gradient_of_a_slice_in_channels_last():
    x = image()
    of_corner = torch.autograd.grad((corner(x, 1, 3) ** 2).sum(), x)[0]
    of_slice = torch.autograd.grad((x[:1, :3] ** 2).sum(), x)[0]
    assert torch.equal(of_corner, of_slice)
    assert of_corner.is_contiguous(memory_format=torch.channels_last)


def test_a_map_that_is_small_enough_is_its_own_corner():
    x = image()
    assert corner(x, 2, 8) is x
