import random

import pytest
import torch
import torch.nn.functional as F
from made_hints import features, hints
from module_route import numbers
from pydantic import ValidationError
from torch import Tensor

from ghnqat_sdk.training.hints import HintConfig, correlation_loss


def standardized(maps: Tensor) -> Tensor:
    """(n, s, s, C) to mean 0 and variance 1 by channel."""
    deviation, mean = torch.std_mean(maps, dim=(0, 1, 2), correction=0)
    return (maps - mean) / deviation


# ---- the correlation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_is_half_the_mean_squared_difference_of_standardized_maps(dtype):
    shown, projection = numbers(5, 8, 4, 4).to(dtype), numbers(6, 8, seed=1)
    target = standardized(numbers(5, 4, 4, 6, seed=2) + shown.permute(0, 2, 3, 1)[..., :6].float())
    loss = correlation_loss(shown, target, projection)
    projected = standardized(shown.permute(0, 2, 3, 1).float() @ projection.T)
    assert loss.item() == pytest.approx((projected - target).square().mean().item() / 2, abs=1e-4)


def test_the_loss_is_zero_for_equal_maps_one_for_unrelated_ones_and_two_for_opposite_ones():
    shown = numbers(50, 6, 8, 8)
    target = standardized(shown.permute(0, 2, 3, 1))
    projection = torch.eye(6)
    assert correlation_loss(3 * shown + 7, target, projection).item() == pytest.approx(0, abs=1e-3)
    assert correlation_loss(-shown, target, projection).item() == pytest.approx(2, abs=1e-3)
    unrelated = numbers(50, 6, 8, 8, seed=1)
    assert correlation_loss(unrelated, target, projection).item() == pytest.approx(1, abs=0.05)


def test_a_channel_that_shows_nothing_has_no_correlation_and_a_finite_gradient():
    shown = torch.zeros(4, 6, 4, 4, requires_grad=True)
    loss = correlation_loss(shown, standardized(numbers(4, 4, 4, 6)), torch.eye(6))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert shown.grad.isfinite().all()


def test_narrow_blocks_use_the_first_columns_of_the_projection():
    shown, projection = numbers(4, 3, 4, 4), numbers(6, 8, seed=1)
    target = standardized(numbers(4, 4, 4, 6, seed=2))
    narrow = correlation_loss(shown, target, projection[:, :3])
    assert torch.equal(correlation_loss(shown, target, projection), narrow)


@pytest.mark.parametrize("side", [2, 8, 9])
def test_maps_of_another_size_are_pooled(side):
    """A block larger than the teacher's map is pooled to it; a smaller one gets a pooled target."""
    taps, wanted = [numbers(4, 8, side, side)], features(4, 4)
    one = hints(stages=1)
    small = min(side, 4)
    shown = F.adaptive_avg_pool2d(taps[0], small)
    target = F.adaptive_avg_pool2d(wanted[0].permute(0, 3, 1, 2), small).permute(0, 2, 3, 1)
    expected = correlation_loss(shown, standardized(target), one.projections[0])
    loss = one.loss(taps, wanted, list(one.projections), random.Random(0))
    assert loss.item() == pytest.approx(expected.item(), abs=2e-3)


def test_fewer_images_are_looked_at_on_large_maps():
    """4,096 positions at least, and 16 images."""
    taps, wanted = numbers(40, 8, 12, 12), numbers(40, 12, 12, 6)
    one = hints(stages=1)
    loss = one.loss([taps], [wanted], list(one.projections), random.Random(0))
    count = 4096 // 144
    changed = taps.clone()
    changed[count:] = 0
    assert torch.equal(one.loss([changed], [wanted], list(one.projections), random.Random(0)), loss)
    changed[count - 1] = 0
    assert not torch.equal(
        one.loss([changed], [wanted], list(one.projections), random.Random(0)), loss
    )


def test_small_maps_are_looked_at_of_all_images():
    taps, wanted = numbers(100, 8, 4, 4).requires_grad_(), numbers(100, 4, 4, 6)
    one = hints(stages=1)
    one.loss([taps], [wanted], list(one.projections), random.Random(0)).backward()
    assert taps.grad.flatten(1).any(1).all()


# ---- which blocks


def test_blocks_are_dealt_to_stages_by_where_they_stand_and_weigh_more_at_their_ends():
    taps = [numbers(4, 8, 4, 4, seed=seed) for seed in range(4)]
    wanted, one = features(4, 4, 2), hints(stages=2)
    loss = one.loss(taps, wanted, list(one.projections), random.Random(0))
    alone = []
    for tap, stage in zip(taps, (0, 0, 1, 1), strict=True):
        single = hints(stages=1)
        single.projections[0] = one.projections[stage]
        alone.append(
            single.loss([tap], [wanted[stage]], list(single.projections), random.Random(0))
        )
    weights = (0.5, 1.0, 0.5, 1.0)
    mean = sum(w * part for w, part in zip(weights, alone, strict=True)) / sum(weights)
    assert loss.item() == pytest.approx(mean.item(), abs=1e-5)


def test_gradients_flow_only_into_the_blocks_that_were_drawn():
    taps = [numbers(4, 8, 4, 4, seed=seed).requires_grad_() for seed in range(7)]
    wanted, one = features(4, 4, 4, 4), hints(stages=3, blocks=2)
    reached = set()
    for seed in range(20):
        loss = one.loss(taps, wanted, list(one.projections), random.Random(seed))
        found = torch.autograd.grad(loss, taps, allow_unused=True)
        chosen = {index for index, gradient in enumerate(found) if gradient is not None}
        assert len(chosen) == 2
        reached |= chosen
    assert reached == set(range(7))


@pytest.mark.parametrize(
    "wrong", [{"weight": 0}, {"channels": 0}, {"blocks": 0}, {"without": 0}, {"stages": 3}]
)
def test_hints_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValidationError):
        HintConfig(**wrong)
