"""What a run on meta tensors leaves in caches beside a model: nothing."""

from collections import OrderedDict, defaultdict
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import ghnqat_sdk as gq
from ghnqat_sdk.graph.trace import trace

GRIDS: dict[int, Tensor] = {}
NESTED = {"grids": GRIDS}
SEEN: list[Tensor] = []
SIZES: set[Tensor] = set()


def grid_of(x: Tensor) -> Tensor:
    side = x.shape[-1]
    if side not in GRIDS:
        GRIDS[side] = torch.linspace(-1, 1, side).to(x)
    return GRIDS[side]


class Base(nn.Module):
    """A convolution whose input is multiplied by something."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * self.factor(x)).mean((2, 3))


class ByFunction(Base):
    def factor(self, x: Tensor) -> Tensor:
        return grid_of(x)


class Nested(Base):
    def factor(self, x: Tensor) -> Tensor:
        return NESTED["grids"].setdefault(x.shape[-1], torch.ones(x.shape[-1]).to(x))


class OfClass(Base):
    grids: ClassVar[OrderedDict[int, Tensor]] = OrderedDict()

    def factor(self, x: Tensor) -> Tensor:
        return self.grids.setdefault(x.shape[-1], torch.ones(x.shape[-1]).to(x))


class OfProperty(Base):
    @property
    def seen(self) -> list[Tensor]:
        return SEEN

    def factor(self, x: Tensor) -> Tensor:
        if not self.seen:
            self.seen.append(torch.ones(()).to(x))
        return self.seen[0]


class OfSet(Base):
    def factor(self, x: Tensor) -> Tensor:
        SIZES.add(torch.ones(()).to(x))
        return next(iter(SIZES))


class Wrapped(Base):
    def __init__(self) -> None:
        super().__init__()
        grids: defaultdict[int, Tensor] = defaultdict(lambda: torch.ones(()))
        plain = self.forward

        def forward(x: Tensor) -> Tensor:
            grids[x.shape[-1]] = grids[x.shape[-1]].to(x)
            return plain(x) * grids[x.shape[-1]]

        self.forward, self.held = forward, lambda: grids

    def factor(self, x: Tensor) -> Tensor:
        return torch.ones(())


@pytest.mark.parametrize("kind", [ByFunction, Nested, OfClass, OfProperty, OfSet, Wrapped])
def test_a_cache_beside_a_model_holds_nothing_of_a_trace(kind, small):
    model, images = kind(), torch.rand(2, 3, 8, 8)
    trace(model, images)
    gq.predict_quantized_params(model, hypernetwork=small, example_inputs=images)
    assert model(images).shape == (2, 10)  # a meta tensor in the cache would end this


def test_what_was_in_a_cache_stays(small):
    GRIDS.clear()
    GRIDS[5] = grid = torch.ones(5)
    trace(ByFunction(), torch.rand(2, 3, 8, 8))
    assert GRIDS.keys() == {5} and GRIDS[5] is grid
