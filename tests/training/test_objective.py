import math
import random

import pytest
import torch
import torch.nn.functional as F
from module_route import drawn_parameters, images, module_scores, setting
from pydantic import ValidationError
from torch import Tensor
from toys import Toy

from ghnqat_sdk.training.networks import Network, prepare_network
from ghnqat_sdk.training.objective import (
    HintConfig,
    Hints,
    NetworkLoss,
    correlation_loss,
    network_loss,
)

BATCH, DEEP, NO_NORM = 0, 1, 2
"""Indices of toys: two layers with batch norm, three with, two without."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def standardized(maps: Tensor) -> Tensor:
    """(n, s, s, C) to mean 0 and variance 1 by channel."""
    deviation, mean = torch.std_mean(maps, dim=(0, 1, 2), correction=0)
    return (maps - mean) / deviation


def with_parameters(index: int) -> tuple[Network, dict[str, Tensor]]:
    architecture = Toy("train", index)
    return prepare_network(architecture, 10), drawn_parameters(architecture.build(10))


def hints(stages: int = 2, **config) -> Hints:
    torch.manual_seed(0)
    return Hints(HintConfig(**{"channels": 8, "blocks": 4} | config), [6] * stages)


def features(count: int, *sides: int) -> list[Tensor]:
    return [numbers(count, side, side, 6, seed=side) for side in sides]


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


# ---- the loss of a network


@pytest.mark.parametrize("index", [BATCH, NO_NORM])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_fake_quantized_module(index, smoothing):
    network, parameters = with_parameters(index)
    x, labels, how = images(10), torch.arange(10), setting((4, 4))
    found = network_loss(network, parameters, x, labels, how, label_smoothing=smoothing)
    scores, _ = module_scores(Toy("train", index).build(10), parameters, x, how)
    loss = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    assert found.accuracy == (scores.argmax(1) == labels).float().mean().item()
    assert found.hint is None and found.of_projections == []
    assert found.gradients.keys() == parameters.keys()
    wanted = torch.autograd.grad(loss, list(parameters.values()))
    for (name, gradient), torchs in zip(found.gradients.items(), wanted, strict=True):
        torch.testing.assert_close(gradient, torchs, rtol=1e-2, atol=1e-4, msg=name)


def test_the_gradient_stops_at_the_prediction():
    network, parameters = with_parameters(BATCH)
    made = {name: 2 * value for name, value in parameters.items()}
    network_loss(network, made, images(4), torch.arange(4), setting((4, 4)))
    assert all(value.grad is None for value in parameters.values())


def hinted(index: int, weight: float, **config) -> NetworkLoss:
    network, parameters = with_parameters(index)
    return network_loss(
        network,
        parameters,
        images(6),
        torch.arange(6),
        setting((32, 32)),
        hints=hints(**config),
        hint_weight=weight,
        wanted=features(6, 16, 8),
        draw=random.Random(0),
    )


def test_hints_add_to_the_gradients_and_leave_the_loss_as_it_is():
    plain, light, heavy = (hinted(DEEP, weight) for weight in (0.0, 1.0, 3.0))
    assert plain.hint is None
    assert 0 < light.hint == heavy.hint < 2
    assert plain.loss == light.loss == heavy.loss
    name = "blocks.0.0.weight"
    added = [one.gradients[name] - plain.gradients[name] for one in (light, heavy)]
    torch.testing.assert_close(3 * added[0], added[1], rtol=1e-3, atol=1e-4)
    assert [gradient.shape for gradient in light.of_projections] == [(6, 8), (6, 8)]
    torch.testing.assert_close(3 * light.of_projections[1], heavy.of_projections[1])


def test_a_hint_reaches_its_block_and_those_before_it():
    plain = hinted(DEEP, 0.0)
    for seed in range(10):
        network, parameters = with_parameters(DEEP)
        one, wanted = hints(blocks=1), features(6, 16, 8)
        options = {"hints": one, "hint_weight": 1.0, "wanted": wanted, "draw": random.Random(seed)}
        found = network_loss(
            network, parameters, images(6), torch.arange(6), setting((32, 32)), **options
        )
        drawn = random.Random(seed).sample(range(3), 1)[0]
        changed = {
            int(name.split(".")[1])
            for name, gradient in found.gradients.items()
            if name.startswith("blocks") and not torch.equal(gradient, plain.gradients[name])
        }
        assert max(changed) == drawn
        assert [of is not None for of in found.of_projections] == [drawn == 0, drawn > 0]


def test_networks_without_norm_get_no_hint_and_weigh_more_instead():
    """As long as the others have hints, which would outweigh them otherwise."""
    plain, half, whole = (hinted(NO_NORM, weight, without=3.0) for weight in (0.0, 3.0, 6.0))
    assert whole.hint is None
    assert whole.of_projections == []
    assert plain.loss == half.loss == whole.loss
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(half.gradients[name], 2 * gradient)
        torch.testing.assert_close(whole.gradients[name], 3 * gradient)


def test_what_explodes_is_not_finite():
    network, parameters = with_parameters(NO_NORM)
    x, labels, how = images(4), torch.arange(4), setting((4, 4))
    assert network_loss(network, parameters, x, labels, how).finite
    for bad in (math.inf, math.nan, 1e38):
        broken = {name: bad * value.detach() for name, value in parameters.items()}
        assert not network_loss(network, broken, x, labels, how).finite


def test_the_norm_is_that_of_all_gradients_together():
    parts = {"a": torch.tensor([3.0]), "b": torch.tensor([[0.0, 4.0]])}
    assert NetworkLoss(1.0, None, 0.5, parts, []).norm == pytest.approx(5)
