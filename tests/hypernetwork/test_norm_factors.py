"""Networks are predicted for the variance that their norms add."""

import pytest
import torch
from torch import nn

from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork
from ghnqat_sdk.hypernetwork.scaling import norm_factors

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NORMS = {
    "batch": lambda eps: nn.BatchNorm2d(8, eps=eps),
    "group": lambda eps: nn.GroupNorm(2, 8, eps=eps),
    "layer": lambda eps: nn.LayerNorm([8, 8, 8], eps=eps),
    "instance": lambda eps: nn.InstanceNorm2d(8, eps=eps, affine=True),
}


@pytest.fixture(scope="module")
def hypernetwork() -> GraphHypernetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GraphHypernetwork().eval()


@torch.no_grad()
def output(model: nn.Module, hypernetwork: GraphHypernetwork) -> torch.Tensor:
    (predicted,) = hypernetwork([trace(model, IMAGES)])
    model.load_state_dict(predicted, strict=False)
    return model(IMAGES)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-6, 10.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_any_epsilon_gives_what_the_usual_one_gives(hypernetwork, norm, bias, epsilon):
    def model(own: float) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=bias), NORMS[norm](own))

    expected = output(model(1e-5), hypernetwork)
    torch.testing.assert_close(output(model(epsilon), hypernetwork), expected, rtol=1e-3, atol=1e-3)


def test_only_what_norms_alone_read_is_scaled():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read_by_both = nn.Conv2d(3, 8, 1)
            self.norm = nn.BatchNorm2d(8, eps=1e-3)
            self.before_norm = nn.Conv2d(8, 8, 1, bias=False)
            self.last = nn.BatchNorm2d(8, eps=1e-3)

        def forward(self, x):
            x = self.read_by_both(x)
            return self.last(self.before_norm(x + self.norm(x)))

    graph = trace(Branches(), IMAGES)
    factors = dict(zip(((n.op, n.module) for n in graph.nodes), norm_factors(graph), strict=True))
    assert factors["conv", "before_norm"] == pytest.approx(10)
    assert factors["conv", "read_by_both"] == factors["bias", "read_by_both"] == 1
    assert factors["batch_norm", "norm"] == 1
