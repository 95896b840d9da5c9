import math
import random

import pytest
import torch
import torch.nn.functional as F
from made_hints import features, hints
from module_route import drawn_parameters, images, module_scores, setting
from torch import Tensor
from toys import Toy

from ghnqat_sdk.training.objective import NetworkLoss, network_loss
from ghnqat_sdk.training.prepared import PreparedNetwork, prepare_network

BATCH, DEEP, NO_NORM = 0, 1, 2
"""Indices of toys: two layers with batch norm, three with, two without."""


def with_parameters(index: int) -> tuple[PreparedNetwork, dict[str, Tensor]]:
    architecture = Toy("train", index)
    return prepare_network(architecture, 10), drawn_parameters(architecture.build(10))


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
        teacher_features=features(6, 16, 8),
        rng=random.Random(0),
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
        options = {
            "hints": one,
            "hint_weight": 1.0,
            "teacher_features": wanted,
            "rng": random.Random(seed),
        }
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
