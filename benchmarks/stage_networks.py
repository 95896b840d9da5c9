"""Small networks of mixed blocks, for trials of training: the weights that ship know none of them.

    PYTHONPATH=benchmarks python benchmarks/ablation.py --data data/cifar10 --steps 1000 \\
        --set 'networks=[{"space": "custom", "factory": "stage_networks.StageNetworks"}]' \\
        --set 'bits.settings=[{"bits": [32, 32]}]' --output runs/stages

A stem of 16 to 48 channels and 3 to 10 blocks of five kinds, all of one kind or each drawn anew;
channels grow at a third and at two thirds of the depth. One network in ten has no norm.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from ghnqat_sdk.training.spaces.blocks import Style
from ghnqat_sdk.training.spaces.described import check_index, check_split
from ghnqat_sdk.training.spaces.families import FamilyNet
from ghnqat_sdk.training.spaces.family_blocks import Kind
from ghnqat_sdk.training.spaces.family_network import Head, Plan, Stage, Stem

SPLITS = {"train": 250_000, "val": 400}
MOST_MACS = 12e6
BLOCKS = ("plain", "separable", "separable", "inverted", "inverted", "basic", "bottleneck")


class StageNetwork(FamilyNet):
    """One of them, an `Architecture`."""

    space = "stages"

    @property
    def simple(self) -> bool:
        return self.norm == "batch"


class StageNetworks:
    """One split, "train" or "val", a `Space`: drawn anew until cheap enough."""

    def __init__(self, split: str) -> None:
        check_split(split, tuple(SPLITS), "StageNetworks")
        self.split = split

    def __len__(self) -> int:
        return SPLITS[self.split]

    def __getitem__(self, index: int) -> StageNetwork:
        check_index(index, self.split, len(self), "StageNetworks")
        return network(self.split, index)


@cache
def network(split: str, index: int) -> StageNetwork:
    rng = random.Random(f"stages {split} {index}")
    while True:
        found = StageNetwork(split, index, drawn(rng))
        if found.macs <= MOST_MACS:
            return found


def drawn(rng: random.Random) -> Plan:
    """Nothing is known of its cost."""
    bare = rng.random() < 0.1
    return Plan(
        family="mixed",
        style=Style("none" if bare else "batch", "relu", bias=bare),
        base=rng.choice([16, 24, 32, 48]),
        most=512,
        stem=Stem("conv", kernel=rng.choice([3, 3, 5]), stride=rng.choice([1, 2, 2])),
        stages=tuple(stages(rng, depth=rng.randint(3, 10))),
        head=Head(),
    )


def stages(rng: random.Random, depth: int) -> Iterator[Stage]:
    """One block each."""
    growth = rng.choice([1.5, 2.0])
    reductions = (max(1, depth // 3), max(2, 2 * depth // 3))
    same = kind(rng) if rng.random() < 0.5 else None
    for position in range(depth):
        passed = sum(position >= reduction for reduction in reductions)
        stride = 2 if position in reductions else 1
        yield Stage(growth**passed, 1, stride, same or kind(rng))


def kind(rng: random.Random) -> Kind:
    block = rng.choice(BLOCKS)
    expansion = {"inverted": rng.choice([2, 3, 4]), "bottleneck": 2}.get(block, 1)
    return Kind(block, rng.choice([3, 3, 5]), expansion)
