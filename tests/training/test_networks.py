import gc
import weakref

import pytest
import torch
from module_route import (
    agrees,
    drawn_parameters,
    gradients,
    images,
    module_scores,
    readers_of_images,
    relative,
    setting,
)
from torch import Tensor, nn
from toys import Toy

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.quantization.ranges import ClippedRanges, MinMaxRanges
from ghnqat_sdk.quantization.roundings import NoiseRounding
from ghnqat_sdk.training import compute
from ghnqat_sdk.training.compute import ComputeConfig
from ghnqat_sdk.training.plan import ForwardPlan
from ghnqat_sdk.training.prepared import PreparedNetworks, prepare_network
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.family_recipes import FAMILIES
from ghnqat_sdk.training.spaces.protocol import Architecture

FLOAT = (32, 32)


def built(architecture: Architecture) -> nn.Module:
    return architecture.build(10)


def cheapest(family: str) -> Architecture:
    """Of the first six; the families take turns."""
    places = range(FAMILIES.index(family), 6 * len(FAMILIES), len(FAMILIES))
    members = [Families("val")[place] for place in places]
    assert {architecture.family for architecture in members} == {family}
    return min(members, key=lambda architecture: architecture.macs)


# ---- plan against module


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_computes_what_the_network_of_a_family_computes(family):
    assert agrees(built(cheapest(family)), setting(FLOAT), 1e-3, of_gradients=0.1)


@pytest.mark.parametrize("index", [2, 13, 18, 19])
def test_a_plan_computes_what_a_network_of_cells_computes(index):
    model = built(DeepNets("val", channels=16)[index])
    assert agrees(model, setting(FLOAT), 1e-3, of_gradients=0.1)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 2), (4, 8), (4, 32), (32, 4)], ids=str)
@pytest.mark.parametrize("index", range(4))
def test_a_plan_quantizes_as_the_module_does(index, bits):
    assert agrees(built(Toy("val", index)), setting(bits), 1e-4)


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=str)
@pytest.mark.parametrize("family", ["plain", "wide", "repvgg"])
def test_a_plan_quantizes_shallow_networks_of_people_as_the_module_does(family, bits):
    assert agrees(built(cheapest(family)), setting(bits), 0.1)


def test_minimum_and_maximum_are_ranges_as_well():
    assert agrees(built(Toy("val", 1)), setting((4, 4), ranges=MinMaxRanges()), 1e-4)


class MeanRanges(MinMaxRanges):
    """A user's rule, which needs all numbers of a tensor."""

    def of(self, x: Tensor, kind: str, bits: int) -> tuple[Tensor, Tensor]:
        spread = 2.5 * x.detach().float().abs().mean()
        return -spread, spread

    def share_of_extremes(self, bits: int) -> None:
        return None

    def sigmas_kept(self, bits: int) -> None:
        return None


@pytest.mark.parametrize("index", range(3))
def test_a_rule_that_needs_more_than_extremes_is_followed(index):
    model = built(Toy("val", index))
    assert agrees(model, setting((4, 4), ranges=MeanRanges()), 1e-4)
    parameters, x = drawn_parameters(model), images(2)
    by_rule, clipped = (
        ForwardPlan(model).run(parameters, x, setting((4, 4), ranges=ranges))[0]
        for ranges in (MeanRanges(), ClippedRanges())
    )
    assert relative(by_rule, clipped) > 0.01


@pytest.mark.parametrize("index", range(3))
def test_noise_is_drawn_where_the_module_draws_it(index):
    model, how = built(Toy("val", index)), setting((4, 4), rounding=NoiseRounding())
    parameters, x = drawn_parameters(model), images(4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plan = ForwardPlan(model, readers_of_images(model, x))
        scores, _ = plan.run(parameters, x, how)
        again, _ = plan.run(parameters, x, how)
        torch.manual_seed(3)
        expected, _ = module_scores(model, parameters, x, how)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert relative(scores, again) > 1e-3


# ---- how it is computed


@pytest.mark.parametrize("bits", [FLOAT, (8, 8), (4, 4)], ids=str)
@pytest.mark.parametrize("index", range(3))
def test_half_precision_changes_little(monkeypatch, index, bits):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: True)
    model = built(Toy("val", index))
    parameters, x = drawn_parameters(model), images(8)
    exact, half = (
        ForwardPlan(model).run(parameters, x, setting(bits, ComputeConfig(dense=dense)))[0]
        for dense in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert relative(half, exact) < 0.05
    found, wanted = gradients(half, parameters), gradients(exact, parameters)
    assert all(gradient.dtype == torch.float32 for gradient in found)
    flat = [torch.cat([g.flatten() for g in of]) for of in (found, wanted)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.9


def test_products_are_in_the_type_of_the_config(monkeypatch):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: True)
    model, x = built(Toy("val", 0)), images(2)
    for dense, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        how = setting((4, 4), ComputeConfig(dense=dense))
        _, taps = ForwardPlan(model).run(drawn_parameters(model), x, how)
        assert {tap.dtype for tap in taps} == {dtype}


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: False)
    config = ComputeConfig(dense="bfloat16", decoder="bfloat16")
    assert config.dtype("dense") == config.dtype("decoder") == torch.float32


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(("dense", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_compiled_kernels_change_nothing_but_last_digits(monkeypatch, index, dense, tolerance):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: True)
    model, x = built(Toy("val", index)), images(4)
    parameters = drawn_parameters(model)
    for bits in (FLOAT, (4, 4)):
        compiled, eager = (
            ForwardPlan(model).run(
                parameters, x, setting(bits, ComputeConfig(dense=dense, compile=on))
            )
            for on in (True, False)
        )
        assert relative(compiled[0], eager[0]) < tolerance
        for one, other in zip(compiled[1], eager[1], strict=True):
            assert relative(one.float(), other.float()) < tolerance


def test_without_compiled_kernels_no_compiler_is_looked_for(monkeypatch):
    def refused(*arguments):
        raise AssertionError("looked for a compiler")

    monkeypatch.setattr("ghnqat_sdk.training.native.library", refused)
    model = built(cheapest("mobilenet_v1"))
    parameters = drawn_parameters(model)
    how = setting((4, 4), ComputeConfig(compile=False))
    scores, _ = ForwardPlan(model).run(parameters, images(2), how)
    assert all(gradient.isfinite().all() for gradient in gradients(scores, parameters))


# ---- preparing


@pytest.mark.parametrize(
    "architecture", [Toy("val", 2), cheapest("inverted_se")], ids=["toy", "family"]
)
def test_a_prepared_network_has_the_graph_of_its_module_and_no_memory(architecture):
    network = prepare_network(architecture, 7)
    expected = trace(architecture.build(7), torch.empty(2, 3, 32, 32))
    assert network.graph.nodes == expected.nodes
    assert network.graph.edges == expected.edges
    assert network.architecture is architecture
    parameters = drawn_parameters(architecture.build(7))
    assert network.graph.parameters.keys() == parameters.keys()
    assert network.plan.run(parameters, images(2), setting(FLOAT))[0].shape == (2, 7)


def test_a_network_with_and_without_norm_is_prepared_twice():
    kept = PreparedNetworks(10, most=4)
    normed, bare = (DeepNets("val", channels=8, bare=bare)[5] for bare in (False, True))
    graphs = [kept.prepared(network).graph for network in (normed, bare)]
    assert ["batch_norm" in {node.op for node in graph.nodes} for graph in graphs] == [True, False]
    assert kept.prepared(normed).graph is graphs[0]


def test_a_prepared_network_is_gone_when_nothing_needs_it():
    gc.collect()
    gc.disable()
    try:
        network = prepare_network(Toy("val", 2), 10)
        gc.collect()  # what preparing left
        network.plan.run(drawn_parameters(built(Toy("val", 2))), images(2), setting((4, 4)))
        parts = [weakref.ref(part) for part in (network, network.plan, network.graph)]
        del network
        assert [part() for part in parts] == [None] * 3
        assert gc.collect() == 0
    finally:
        gc.enable()


class Branching(nn.Module):
    def block_ends(self) -> list[nn.Module]:
        return []

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_is_refused():
    with pytest.raises(ArgumentError, match=r"traceable by torch.fx, and Branching is not"):
        ForwardPlan(Branching())


def test_taps_are_the_blocks_in_their_order():
    model = built(Toy("val", 3))
    _, taps = ForwardPlan(model).run(drawn_parameters(model), images(2), setting((4, 4)))
    assert [tuple(tap.shape) for tap in taps] == [(2, 16, 16, 16), (2, 16, 8, 8), (2, 16, 8, 8)]
    assert agrees(model, setting(FLOAT), 1e-3)
