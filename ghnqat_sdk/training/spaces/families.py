"""Networks as people write them: an indexed, reproducible space of hand-made image classifiers.

A hypernetwork that is to serve torchvision's and timm's CNNs is trained on networks whose
computation graphs look like theirs: the same stems, blocks, order of operations and heads, with the
channels that people use, on images of 32x32 pixels. Nothing is stored: (split, index) alone makes a
network, the same in every process and on every machine.

Example:
    >>> import torch
    >>> network = Families("train")[0]
    >>> network.key
    ('families', 'train', 0)
    >>> network.build(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

from ghnqat_sdk.training.spaces.described import Described, check_index, check_split
from ghnqat_sdk.training.spaces.drawing import draw
from ghnqat_sdk.training.spaces.family_draw import Recipe, draw_plan
from ghnqat_sdk.training.spaces.family_network import Network, Plan, describe
from ghnqat_sdk.training.spaces.family_recipes import FAMILIES, RECIPES
from ghnqat_sdk.training.spaces.protocol import Norm

SPLITS: dict[str, int] = {"train": 250_000, "val": 400, "test": 400}
SIMPLE_FAMILIES = ("plain", "residual", "bottleneck", "mobilenet_v1", "inverted")
SIMPLE_DEPTH = 30

MACS = (2_000_000, 150_000_000)
MAX_PARAMETERS = 25_000_000
MAX_DEPTH = 64
COSTS = (
    (0.0, 2.5e6),
    (0.15, 4.5e6),
    (0.3, 7e6),
    (0.5, 11e6),
    (0.7, 18e6),
    (0.85, 30e6),
    (0.95, 60e6),
    (1.0, 130e6),
)
"""(probability, MACs): the distribution that networks are drawn for, straight lines between."""
NEAR = 1.8
"""How much dearer than drawn a network may be."""
RELAXED = 1.25
"""Factor on the cost drawn, each time that a plan is refused."""
MOST_RELAXED = 60_000_000


@dataclass(frozen=True)
class FamilyNet(Described):
    """One network of the space, an `Architecture`.

    Attributes:
        split: The split it belongs to.
        index: Where in the split.
        plan: Everything that describes it.
    """

    space: ClassVar[str] = "families"
    split: str
    index: int
    plan: Plan

    @property
    def family(self) -> str:
        """See `Architecture`; one of `FAMILIES`."""
        return self.plan.family

    @property
    def norm(self) -> Norm:
        """See `Architecture`."""
        return cast(Norm, self.plan.style.norm)

    @property
    def simple(self) -> bool:
        """See `Architecture`: common blocks, batch norm, ReLU, few layers, a pooled head."""
        return (
            self.family in SIMPLE_FAMILIES
            and self.norm == "batch"
            and self.plan.style.activation in ("relu", "relu6")
            and self.plan.head.side == 1
            and not self.plan.head.hidden
            and self.depth <= SIMPLE_DEPTH
        )

    def describe(self, num_classes: int) -> Network:
        """See `Described`."""
        return describe(self.plan, num_classes)


class Families:
    """One split of the space, a `Space`.

    The networks of "train" are drawn by the weights of the recipes; in "val" and "test" the
    families take turns. No plan is in two splits.

    Args:
        split: "train" (250,000 networks), "val" or "test" (400 each).

    Raises:
        ArgumentError: no such split.
    """

    def __init__(self, split: str = "train") -> None:
        check_split(split, tuple(SPLITS), "Families")
        self.split = split

    def __len__(self) -> int:
        """See `Space`."""
        return SPLITS[self.split]

    def __getitem__(self, index: int) -> FamilyNet:
        """See `Space`.

        Raises:
            SpaceIndexError: `index` is no integer of the split.
        """
        check_index(index, self.split, len(self), "Families")
        return network_at(self.split, index)

    def __repr__(self) -> str:
        return f"Families({self.split!r})"


def network_at(split: str, index: int) -> FamilyNet:
    """The network at the index of the split."""
    digest = hashlib.sha256(f"families/{split}/{index}".encode()).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    family = "" if split == "train" else FAMILIES[index % len(FAMILIES)]
    odds = {recipe: recipe.weight for recipe in RECIPES if family in ("", recipe.family)}
    recipe = draw(rng, odds)
    cost = draw_cost(rng)
    while True:
        network = fitted(FamilyNet(split, index, draw_plan(rng, recipe)), recipe, cost)
        if network.macs > NEAR * cost or not keeps_limits(network):
            cost = min(cost * RELAXED, MOST_RELAXED)
        elif split_of(network.plan) == split:
            return network


def split_of(plan: Plan) -> str:
    """The only split that has networks of this plan: a sixteenth each for "val" and "test"."""
    part = hashlib.sha256(repr(plan).encode()).digest()[0] // 16
    return {0: "val", 1: "test"}.get(part, "train")


def draw_cost(rng: random.Random) -> float:
    """MACs by `COSTS`: no transcendental function, whose last bit may vary between machines."""
    position = rng.random()
    for (p0, low), (p1, high) in pairwise(COSTS):
        if position <= p1:
            return low + (high - low) * (position - p0) / (p1 - p0)
    return COSTS[-1][1]


def fitted(network: FamilyNet, recipe: Recipe, cost: float) -> FamilyNet:
    """With the base that brings it nearest to the cost, taken to grow with its square."""
    plan = network.plan
    wanted = plan.base * math.sqrt(cost / network.macs)
    base = min(recipe.bases, key=lambda size: abs(size - wanted))
    return FamilyNet(network.split, network.index, plan._replace(base=base))


def keeps_limits(network: FamilyNet) -> bool:
    return (
        MACS[0] <= network.macs <= MACS[1]
        and network.parameter_count <= MAX_PARAMETERS
        and network.depth <= MAX_DEPTH
    )
