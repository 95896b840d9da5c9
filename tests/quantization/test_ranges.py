import pytest
import torch

from ghnqat_sdk.quantization.ranges import (
    ClippedRanges,
    min_max_range,
    ratio_clipped_range,
    sigma_clipped_range,
)


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


# ---- what layers read the model's inputs


def test_less_of_the_images_is_clipped():
    x = torch.tensor([-1.0, 2.0])
    rule = ClippedRanges()
    for bits in (2, 3, 4):
        inside = rule.of(x, "activation", bits)
        images = rule.of(x, "input", bits)
        assert images[0] < inside[0] and images[1] > inside[1]
        torch.testing.assert_close(torch.stack(images), rule.input_ratio[bits] * x)
    assert torch.equal(torch.stack(rule.of(x, "input", 8)), x)


def test_a_file_without_shares_of_inputs_means_those_of_activations():
    """As those of before there were any."""
    older = ClippedRanges.model_validate({"type": "clipped", "activation_ratio": {"2": 0.5}})
    assert older.input_ratio == {2: 0.5}
    assert ClippedRanges.model_validate_json(older.model_dump_json()) == older
    both = ClippedRanges(activation_ratio={2: 0.5}, input_ratio={2: 0.7})
    assert both.input_ratio == {2: 0.7}
