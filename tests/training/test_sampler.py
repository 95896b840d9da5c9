import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from toys import Toys

from ghnqat_sdk.data import ImageSet
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.sampler import Draw, Sampler, SamplingConfig, draw_batch
from ghnqat_sdk.training.shares import CustomShare, DeepNetsShare, FamiliesShare, SpaceShare

BITS = [((4, 4), 1.0), ((2, 2), 1.0), ((8, 8), 0.0)]
TOYS = CustomShare(factory="toys.Toys")


def sampler(*shares, seed=0, float_until=0, **sampling) -> Sampler:
    sampling = {"meta_batch": 6, "window": 40, "uses": 4} | sampling
    return Sampler(seed, shares or (TOYS,), SamplingConfig(**sampling), BITS, float_until)


def described(draws: list[Draw]) -> list[tuple[object, ...]]:
    return [(draw.architecture.key, draw.bits, draw.images) for draw in draws]


# ---- the same anywhere


def test_a_step_is_the_same_in_every_process():
    code = (
        "import test_sampler; one = test_sampler.sampler(seed=3)\n"
        "print([test_sampler.described(one.step(step, 1, 2)) for step in (0, 7, 5000)])"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parents[1])])
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "4242", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    one = sampler(seed=3)
    assert run.stdout.strip() == str([described(one.step(step, 1, 2)) for step in (0, 7, 5000)])


def test_a_step_does_not_depend_on_which_were_drawn_before():
    fresh, used = sampler(), sampler()
    for step in range(20):
        used.step(step)
    assert described(used.step(31)) == described(fresh.step(31))


@pytest.mark.parametrize(
    ("seed", "step", "processes"),
    [(1, 0, 1), (0, 1, 1), (0, 0, 2)],
    ids=["seed", "step", "processes"],
)
def test_a_step_depends_on_seed_step_and_number_of_processes(seed, step, processes):
    other = sampler(seed=seed).step(step, 0, processes)
    assert described(other) != described(sampler().step(0))


def test_each_process_has_networks_of_its_own_and_all_of_them_the_same_bits():
    one = sampler(FamiliesShare(max_macs=10e6), window=12)
    steps = [one.step(step, rank, 3) for rank in range(3) for step in range(6)]
    by_rank = [steps[6 * rank : 6 * rank + 6] for rank in range(3)]
    seen = [{d.architecture.key for draws in of_rank for d in draws} for of_rank in by_rank]
    assert all(len(keys) > 10 for keys in seen)
    assert not (seen[0] & seen[1] | seen[1] & seen[2] | seen[0] & seen[2])
    bits = [[[d.bits for d in draws] for draws in of_rank] for of_rank in by_rank]
    assert bits[0] == bits[1] == bits[2]


def test_processes_together_see_the_sequence_that_one_sees():
    families = FamiliesShare(max_macs=40e6)
    alone, dealt = sampler(families), sampler(families, meta_batch=200, window=10)
    seen = {alone.network(number, False) for number in range(30)}
    drawn = {d.architecture for rank in range(3) for d in dealt.step(0, rank, 3)}
    assert drawn == seen


def test_processes_get_networks_of_about_the_same_cost_side_by_side():
    one = sampler(FamiliesShare(max_macs=20e6), meta_batch=8, window=60, batch_macs=1e12)
    for step in range(4):
        drawn = [one.step(step, rank, 3) for rank in range(3)]
        costs = [[one._cost(draw.architecture) for draw in of_rank] for of_rank in drawn]
        assert all(max(side) < 1.5 * min(side) for side in zip(*costs, strict=True))
        assert max(map(sum, costs)) < 1.2 * min(map(sum, costs))
        assert max(costs[0]) > 2 * min(costs[0])


# ---- the window


def test_the_window_moves_so_that_a_network_is_used_about_as_often_as_asked():
    one = sampler(FamiliesShare(), meta_batch=10, window=20, uses=4)
    place = {one.network(number, False): number for number in range(110)}
    drawn = [[place[d.architecture] for d in one.step(step)] for step in range(36)]
    assert all(step * 10 // 4 <= n < step * 10 // 4 + 20 for step in range(36) for n in drawn[step])
    settled = Counter(number for numbers in drawn for number in numbers if 20 <= number < 85)
    assert settled.total() / 65 == pytest.approx(4, rel=0.2)


def test_a_number_of_the_sequence_is_one_network_for_good():
    networks = [sampler(seed=2).network(number, False) for number in range(30)]
    assert networks == [sampler(seed=2).network(number, False) for number in range(30)]
    assert len(set(networks)) > 15


# ---- which networks


def test_simple_networks_come_first():
    one = sampler(simple_until=10)
    early = [draw.architecture for step in range(10) for draw in one.step(step)]
    later = [draw.architecture for step in range(10, 20) for draw in one.step(step)]
    assert {architecture.simple for architecture in early} == {True}
    assert {architecture.simple for architecture in later} == {True, False}


def test_a_space_without_simple_networks_gives_what_it_has():
    deep = CustomShare(factory="toys.Toys", min_macs=100_000, max_macs=150_000)
    drawn = sampler(deep, simple_until=1, window=3).step(0)
    assert {draw.architecture.depth for draw in drawn} == {4}


def test_bits_are_drawn_by_their_shares_after_the_float_phase():
    one = sampler(float_until=3, meta_batch=50)
    phases = [
        Counter(draw.bits for step in steps for draw in one.step(step))
        for steps in ((0, 1, 2), range(3, 9))
    ]
    assert phases[0].keys() == {(32, 32)}
    assert phases[1].keys() == {(4, 4), (2, 2)}
    assert phases[1][4, 4] == pytest.approx(150, rel=0.25)


@pytest.mark.parametrize(
    "share",
    [
        DeepNetsShare(channels=16, min_macs=8e6, max_macs=16e6),
        FamiliesShare(min_macs=3e6, max_macs=9e6, max_parameters=5e5),
        CustomShare(factory="toys.Toys", min_macs=1e5, max_macs=2e5),
    ],
    ids=lambda share: share.space,
)
def test_networks_keep_the_limits_of_their_share(share):
    drawn = [draw.architecture for step in range(5) for draw in sampler(share).step(step)]
    assert all(share.min_macs <= a.macs <= share.max_macs for a in drawn)
    assert all(a.parameter_count <= share.max_parameters for a in drawn)
    assert len(set(drawn)) > 5


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_share_may_be_of_networks_with_one_norm(norm):
    drawn = sampler(FamiliesShare(norm=norm), TOYS.model_copy(update={"share": 0})).step(0)
    assert {draw.architecture.norm for draw in drawn} == {norm}


def test_deepnets_can_all_be_without_norm():
    one = sampler(DeepNetsShare(bare=True))
    assert {one.network(number, False).norm for number in range(10)} == {"none"}


def test_deepnets_can_all_be_long():
    one = sampler(DeepNetsShare(deep=True, max_macs=2e8))
    cells = [one.network(number, False).cells for number in range(40)]
    assert min(cells) >= 10
    assert max(cells) > 18


def test_spaces_are_drawn_by_their_shares():
    shares = (FamiliesShare(share=3), CustomShare(share=1, factory="toys.Toys"))
    one = sampler(*shares, DeepNetsShare(share=0))
    spaces = Counter(one.network(number, False).key[0] for number in range(400))
    assert spaces["families"] == pytest.approx(300, rel=0.1)
    assert spaces["toys"] == pytest.approx(100, rel=0.3)
    assert "deepnets" not in spaces


def test_deepnets_have_the_channels_that_are_asked_for():
    own = {sampler(DeepNetsShare(max_macs=2e8)).network(n, False).channels for n in range(40)}
    asked = {sampler(DeepNetsShare(channels=24)).network(n, False).channels for n in range(10)}
    assert own == {16, 24, 32, 48}
    assert asked == {24}


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (FamiliesShare(max_macs=1e6), "'families' has 0 to 1e.06"),
        (CustomShare(factory="toys.Toys", max_parameters=10), "'toys.Toys'.*at most 10 parameters"),
        (CustomShare(factory="toys.Toys", min_macs=1e9, max_macs=1e10), "'toys.Toys' has 1e.09"),
        (CustomShare(factory="toys.Toys", norm="group"), "'toys.Toys'.* and norm group"),
    ],
)
def test_limits_that_no_network_meets_are_refused_at_once(share, name):
    with pytest.raises(ArgumentError, match=f"No network of the space {name}.*Raise max_macs"):
        sampler(TOYS, share)


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        ({"space": "nets"}, "'nets'"),
        ({"space": "custom"}, "factory"),
        ({"space": "custom", "factory": "no_such_module.Space"}, "no_such_module"),
        ({"space": "families", "share": -1}, "share"),
        ({"space": "families", "channels": 16}, "channels"),
    ],
)
def test_a_share_that_cannot_be_meant_is_refused(share, reason):
    with pytest.raises(ValueError, match=reason):
        TypeAdapter(SpaceShare).validate_python(share)


# ---- images


def test_costly_networks_see_fewer_images_in_few_sizes():
    sampling = SamplingConfig(image_batch=64, least_images=16, batch_macs=5e8)
    networks = [FamiliesShare().build("val")[index] for index in range(60)]
    sizes = {a.macs: sampling.images(a) for a in networks}
    assert set(sizes.values()) == {16, 32, 64}
    assert all(size * macs <= 5e8 for macs, size in sizes.items() if size > 16)
    assert all(size == 64 for macs, size in sizes.items() if 64 * macs <= 5e8)
    assert sorted(sizes.values(), reverse=True) == [sizes[macs] for macs in sorted(sizes)]


def test_no_network_sees_more_images_than_a_small_batch():
    sampling = SamplingConfig(image_batch=4, least_images=16, batch_macs=1)
    assert {sampling.images(Toys("val")[index]) for index in range(8)} == {4}


def shown_unmoved(images: ImageSet, padding: int) -> tuple[list[bool], list[int]]:
    """Of each image of a batch: whether it is the original or its mirror image, and its label
    less the original's."""
    batch = draw_batch(images, 40, padding, torch.Generator().manual_seed(0))
    originals = images.normalize(images.images[batch.indices])
    pairs = zip(batch.images, originals, strict=True)
    same = [torch.equal(x, one) or torch.equal(x, one.flip(2)) for x, one in pairs]
    return same, (batch.labels - images.labels[batch.indices]).tolist()


@pytest.mark.parametrize("padding", [0, 4])
def test_images_are_shifted_as_far_as_the_padding(images, padding):
    same, labels = shown_unmoved(images["train"], padding)
    assert all(same) if padding == 0 else not all(same)
    assert set(labels) == {0}


def test_a_batch_says_how_its_images_were_moved_and_repeats_with_its_generator(images):
    first, again = (
        draw_batch(images["train"], 20, 3, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(first.images, again.images)
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.moves.flip.any() and not first.moves.flip.all()
    assert first.moves.rows.abs().max() == first.moves.columns.abs().max() == 3
    assert torch.bincount(first.labels).tolist() == [2] * 10
