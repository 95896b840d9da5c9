import pytest
import torch

from ghnqat_sdk.quantization.ranges import min_max_range, ratio_clipped_range, sigma_clipped_range


def test_sigma_clipped_range_is_never_wider_than_min_and_max():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    low, high = sigma_clipped_range(x, 1.5)
    assert (low.item(), high.item()) == pytest.approx((-1.5, 1.5), abs=0.05)
    assert sigma_clipped_range(x, 50.0) == min_max_range(x)


def test_ratio_clipped_range_scales_minimum_and_maximum():
    low, high = ratio_clipped_range(torch.tensor([-2.0, 1.0, 4.0]), 0.5)
    assert (low.item(), high.item()) == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0, 3.0], (2.0, 2.5)), ([-3.0, -2.0], (-2.5, -2.0))]
)
def test_ratio_clipped_range_keeps_the_end_nearest_to_zero_where_zero_is_outside(values, expected):
    low, high = ratio_clipped_range(torch.tensor(values), 0.5)
    assert (low.item(), high.item()) == expected
