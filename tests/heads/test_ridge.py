import pytest
import torch
from torch import Tensor, nn

from ghnqat_sdk.heads.ridge import ClassSums, Linear, Ridge, best_scale, choose_strength


def test_ridge_regression_is_that_of_the_normal_equations_where_classes_are_balanced():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.arange(60) % 3
    sums = ClassSums(3, 5)
    for part in range(0, 60, 20):
        sums.add(features[part : part + 20], labels[part : part + 20])
    linear = Ridge(sums, intercept=True).at(0.5, lambda weight: weight)
    centred = features - features.mean(0)
    onehot = nn.functional.one_hot(labels, 3).double()
    within = torch.cat([features[labels == k] - features[labels == k].mean(0) for k in range(3)])
    shrinkage = 0.5 * within.square().mean() * 60
    normal = centred.T @ centred + shrinkage * torch.eye(5)
    expected = torch.linalg.solve(normal, centred.T @ (onehot - 1 / 3)).T
    torch.testing.assert_close(linear.weight, expected.float())
    scores = features.float() @ linear.weight.T + linear.bias
    torch.testing.assert_close(scores.mean(0), torch.full((3,), 1 / 3))


def test_the_bias_suits_the_weight_as_it_is_rounded():
    features = torch.tensor([[5.0, 1.0], [5.0, 2.0], [5.0, -1.0], [5.0, -2.0]])
    labels = torch.tensor([0, 0, 1, 1])
    sums = ClassSums(2, 2)
    sums.add(features, labels)

    def uneven(weight: Tensor) -> Tensor:
        return weight + torch.tensor([[0.0, 0.0], [3.0, 0.0]])

    linear = Ridge(sums, intercept=True).at(0.1, uneven).quantized(uneven)
    assert linear(features).argmax(1).tolist() == [0, 0, 1, 1]


def test_the_strength_is_the_one_that_does_best_when_quantized():
    features = torch.tensor([[2.0, 0.1], [1.5, -0.1], [-2.0, 0.1], [-1.5, -0.1]]).repeat(5, 1)
    labels = torch.tensor([0, 0, 1, 1]).repeat(5)
    sums = ClassSums(2, 2)
    sums.add(features, labels)
    ridge = Ridge(sums, intercept=True)

    def useless_unless_small(weight: Tensor) -> Tensor:
        return weight if weight.abs().max() < 0.1 else torch.zeros_like(weight)

    choice = choose_strength(ridge, (0.01, 1000.0), features, labels, useless_unless_small)
    assert choice.strength == 1000.0
    assert choose_strength(ridge, (0.01, 1000.0), features, labels, lambda w: w).strength == 0.01


def test_scale_is_the_inverse_temperature_of_least_cross_entropy():
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])
    scale, loss = best_scale(scores, labels, (0.1, 1.0, 50.0))
    assert scale == 1.0
    weights = torch.tensor([0.5, 0.5])
    assert loss == pytest.approx(nn.functional.cross_entropy(scores, labels, weights).item())


def test_linear_scores_scale_with_their_factor():
    linear = Linear(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
    features = torch.tensor([[1.0, 1.0]])
    assert linear.scaled(2.0)(features).item() == 2 * linear(features).item() == 12.0
