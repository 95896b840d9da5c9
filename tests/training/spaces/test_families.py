"""The promises of the space of hand-made networks: reproducible, of known cost, like people's."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
from collections import Counter

import pytest

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.spaces.cost import IMAGE, Cost
from ghnqat_sdk.training.spaces.families import SPLITS, Families, FamilyNet, split_of
from ghnqat_sdk.training.spaces.family_draw import fewer_halvings
from ghnqat_sdk.training.spaces.family_network import Plan, Stem, describe
from ghnqat_sdk.training.spaces.family_recipes import FAMILIES, RECIPES

VAL = Families("val")


@pytest.fixture(scope="module")
def train() -> list[FamilyNet]:
    space = Families("train")
    return [space[index * 249] for index in range(1000)]


def last_side(plan: Plan) -> int:
    """Positions a side behind the last block."""
    network = describe(plan, 10)
    flow = IMAGE
    for part in (network.stem, *network.blocks):
        flow = part.trace(flow, Cost())
    return flow.height


def described() -> str:
    networks = [Families(split)[index] for split in SPLITS for index in range(0, 90, 7)]
    return "\n".join(f"{network} {network.macs} {network.parameter_count}" for network in networks)


# ---------------------------------------------------------------- reproducible


def test_same_network_in_every_process() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import test_families as t; print(t.described())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == described()


def test_the_mapping_is_frozen() -> None:
    assert hashlib.sha256(described().encode()).hexdigest() == (
        "1a7af2ea147f98792d944933dcda4a1c50030bb3060df43da8bbd0af39afe6f5"
    ), "(split, index) must keep its meaning once networks have been trained"


def test_no_plan_is_in_two_splits(train: list[FamilyNet]) -> None:
    plans = {network.plan for network in train}
    for split in ("val", "test"):
        held_out = {Families(split)[index].plan for index in range(30)}
        assert not plans & held_out
        assert {split_of(plan) for plan in held_out} == {split}
    assert {split_of(plan) for plan in plans} == {"train"}


def test_different_indices_give_different_networks(train: list[FamilyNet]) -> None:
    assert len({network.plan for network in train}) > 950
    assert len({hash(network) for network in train}) == len(train)
    assert Families("val")[3].plan != Families("test")[3].plan


# ---------------------------------------------------------------- what is drawn


def test_every_family_has_its_share(train: list[FamilyNet]) -> None:
    weights: Counter[str] = Counter()
    for recipe in RECIPES:
        weights[recipe.family] += recipe.weight
    assert sum(weights.values()) == 100 and min(weights.values()) >= 4
    drawn = Counter(network.family for network in train)
    for family, weight in weights.items():
        assert 0.5 * weight < 100 * drawn[family] / len(train) < 1.6 * weight


@pytest.mark.parametrize("split", ["val", "test"])
def test_families_take_turns_outside_training(split: str) -> None:
    assert [Families(split)[index].family for index in range(30)] == [*FAMILIES, *FAMILIES]


def test_costs_of_training_networks(train: list[FamilyNet]) -> None:
    macs = [network.macs for network in train]
    assert min(macs) >= 2e6 and max(macs) <= 150e6
    assert 8e6 < statistics.median(macs) < 15e6
    assert sum(4e6 <= cost <= 40e6 for cost in macs) > 0.8 * len(macs)
    assert max(network.parameter_count for network in train) <= 25e6
    assert min(network.depth for network in train) < 8
    assert 50 < max(network.depth for network in train) <= 64


def test_mix_of_training_networks(train: list[FamilyNet]) -> None:
    norms = Counter(network.norm for network in train)
    assert 0.02 * len(train) < norms["none"] < 0.08 * len(train)
    assert 0.03 * len(train) < norms["group"] < 0.08 * len(train)
    assert {network.family for network in train if network.norm == "layer"} == {"convnext"}
    assert 0.15 < sum(network.simple for network in train) / len(train) < 0.4
    activations = {network.plan.style.activation for network in train}
    assert activations == {"relu", "relu6", "hardswish", "silu", "gelu", "leaky-relu"}


def test_earliest_halvings_are_left_out_first() -> None:
    imagenet = Stem("conv", 7, 2, pooled=True)
    assert fewer_halvings(imagenet, (1, 2, 2, 2), 5) == (imagenet, [1, 2, 2, 2])
    assert fewer_halvings(imagenet, (1, 2, 2, 2), 4) == (Stem("conv", 3, 2), [1, 2, 2, 2])
    assert fewer_halvings(imagenet, (1, 2, 2, 2), 3) == (Stem("conv", 3, 1), [1, 2, 2, 2])
    assert fewer_halvings(imagenet, (1, 2, 2, 2), 2) == (Stem("conv", 3, 1), [1, 1, 2, 2])


def test_half_of_the_networks_end_in_one_position_as_torchvisions_do(
    train: list[FamilyNet],
) -> None:
    """Those of torchvision halve an image of 32 pixels five times."""
    sides = [last_side(network.plan) for network in train]
    assert 0.45 < sum(side == 1 for side in sides) / len(sides) < 0.65


# ---------------------------------------------------------------- as a sequence


def test_space_is_a_sequence() -> None:
    assert [len(Families(split)) for split in ("train", "val", "test")] == [250_000, 400, 400]
    assert VAL[7] == Families("val")[7] and VAL[7].key == ("families", "val", 7)
    assert repr(VAL) == "Families('val')"


@pytest.mark.parametrize("index", [-1, 400, 1.0, True, "0"])
def test_wrong_index_is_refused(index: object) -> None:
    with pytest.raises(ArgumentError, match=r"from 0 to 399.*Families\('val'\)\[0\]"):
        VAL[index]


def test_wrong_split_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"'deep'.*'train', 'val', 'test'.*Families\('train'\)"):
        Families("deep")


@pytest.mark.parametrize("classes", [0, 2.0, True])
def test_wrong_number_of_classes_is_refused(classes: object) -> None:
    with pytest.raises(ArgumentError, match=r"num_classes came as .*build\(num_classes=10\)"):
        VAL[0].build(num_classes=classes)


def test_a_loop_over_a_split_ends_with_it() -> None:
    assert [network.key[2] for network in Families("test")] == list(range(len(Families("test"))))
