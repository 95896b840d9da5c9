"""The promises of the re-created DeepNets-1M: reproducible, of known cost, as published."""

from __future__ import annotations

import doctest
import hashlib
from itertools import islice
from operator import attrgetter
from statistics import mean, median

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.spaces import deepnets
from ghnqat_sdk.training.spaces.cells import FactorizedReduce
from ghnqat_sdk.training.spaces.deepnet import GRID, DeepNet
from ghnqat_sdk.training.spaces.deepnets import MAX_PARAMETERS, SPLITS, DeepNets

FROZEN = "fcce3751f94bcec3ced1f8d9fe6b49390c2f52e1442fb1bfedb113f4e270957b"
MIXED = [(split, index) for split in SPLITS for index in range(3)]


@pytest.fixture(scope="module")
def val() -> list[DeepNet]:
    return list(islice(DeepNets("val"), 300))


@pytest.fixture(scope="module")
def train() -> list[DeepNet]:
    space = DeepNets("train")
    return [space[index * 599] for index in range(400)]


def on_meta(network: DeepNet) -> nn.Module:
    with torch.device("meta"):
        return network.build()


def hook_macs(net: nn.Module) -> int:
    """MACs counted while an image passes."""
    macs: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    return sum(macs)


def test_example() -> None:
    assert doctest.testmod(deepnets).failed == 0


def test_the_mapping_is_frozen() -> None:
    lines = [repr(DeepNets(split)[index]) for split in SPLITS for index in range(0, 100, 9)]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == FROZEN, (
        "(split, index) must keep its meaning once networks have been trained"
    )


def test_networks_depend_on_split_and_index_alone(val: list[DeepNet]) -> None:
    assert DeepNets("val")[7] == val[7]
    assert DeepNets("val")[7].key == ("deepnets", "val", 7)
    assert len({(net.normal, net.reduction, net.cells, net.stem, net.macs) for net in val}) > 295
    assert DeepNets("id")[7].macs != val[7].macs


def test_sizes_of_splits() -> None:
    sizes = {"train": 250_000, "val": 500, "id": 500, "deep": 100, "wide": 100, "bn-free": 100}
    sizes |= {"deep-train": 250_000, "deep-val": 100}
    assert {split: len(DeepNets(split)) for split in SPLITS} == sizes


def test_costs_are_those_of_the_published_generator(val: list[DeepNet]) -> None:
    assert 50e6 < median(net.macs for net in val) < 75e6
    assert 0.55e6 < median(net.parameter_count for net in val) < 0.8e6
    assert min(net.macs for net in val) > 4e6
    assert mean(10e6 < net.macs < 560e6 for net in val) > 0.94
    assert max(net.parameter_count for net in val) <= MAX_PARAMETERS


def test_mix_is_that_of_the_published_generator(val: list[DeepNet]) -> None:
    assert {net.cells for net in val} == set(range(4, 19))
    assert 0.02 < mean(net.norm == "none" for net in val) < 0.06
    assert 0.86 < mean(net.pooled for net in val) < 0.95
    assert 0.4 < mean(net.stem == "imagenet" for net in val) < 0.6
    assert 0.2 < mean(net.simple for net in val) < 0.4
    assert {net.channels for net in val} == {32}
    assert all(net.cells <= 5 for net in val if net.norm == "none")


def test_steps_of_large_networks(val: list[DeepNet]) -> None:
    assert max(len(net.normal.steps) for net in val) == 4
    assert max(len(net.normal.steps) for net in val if net.cells > 10) == 2


def test_every_operation_occurs_and_large_ones_are_rare(val: list[DeepNet]) -> None:
    cells = [cell for net in val for cell in (net.normal, net.reduction)]
    operations = [edge.operation for cell in cells for edge in cell.edges]
    assert len(set(operations)) == 12
    large = [sum(edge.operation in ("conv-5", "conv-7") for edge in cell.edges) for cell in cells]
    assert max(large) == 1


def test_deep_split() -> None:
    deep = list(DeepNets("deep"))
    assert min(net.cells for net in deep) >= 10
    assert max(net.cells for net in deep) > 33
    assert 80e6 < median(net.macs for net in deep) < 150e6
    assert max(len(net.normal.steps) for net in deep if net.cells > 18) == 2
    assert max(net.parameter_count for net in deep) <= MAX_PARAMETERS


def test_long_networks_to_train_on_are_not_those_to_test_on() -> None:
    trained, tested = DeepNets("deep-train"), DeepNets("deep")
    assert all(10 <= trained[index].cells <= 36 for index in range(20))
    parts = attrgetter("normal", "reduction", "cells")
    assert not set(map(parts, islice(trained, 200))) & set(map(parts, tested))


def test_wide_split_is_four_times_as_wide() -> None:
    wide, narrow = DeepNets("wide"), DeepNets("wide", channels=32)
    assert {net.channels for net in islice(wide, 20)} == {128}
    assert max(net.parameter_count for net in islice(wide, 50)) > MAX_PARAMETERS
    assert max(net.parameter_count for net in narrow) <= MAX_PARAMETERS


def test_bn_free_split_has_biases_instead_of_norm() -> None:
    assert {net.norm for net in DeepNets("bn-free")} == {"none"}
    modules = list(on_meta(DeepNets("bn-free")[0]).modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert all(m.bias is not None for m in modules if isinstance(m, nn.Conv2d))


def test_networks_of_any_split_can_be_without_norm() -> None:
    bare, own = DeepNets("train", bare=True), DeepNets("train")
    assert {bare[index].norm for index in range(40)} == {"none"}
    assert max(bare[index].cells for index in range(40)) > 12
    assert bare[7].normal == own[7].normal
    assert all(m.bias is not None for m in on_meta(bare[7]).modules() if isinstance(m, nn.Conv2d))


def test_channels_of_training_networks(train: list[DeepNet]) -> None:
    assert {net.channels for net in train} == {16, 24, 32, 48}
    assert 0.07 < mean(net.channels == 32 for net in train) < 0.14
    assert max(net.parameter_count for net in train) <= MAX_PARAMETERS


def test_channels_of_training_networks_are_of_the_grid(train: list[DeepNet]) -> None:
    for network in train[:40]:
        modules = list(on_meta(network).modules())
        pairs = [m for m in modules if isinstance(m, FactorizedReduce)]
        halves = {half for pair in pairs for half in (pair.even, pair.odd)}
        for conv in (m for m in modules if isinstance(m, nn.Conv2d)):
            assert conv.in_channels in (3, *GRID)
            assert conv.out_channels * (2 if conv in halves else 1) in GRID


def test_other_channels_leave_the_graph_as_it_is() -> None:
    network, own = DeepNets("val", channels=8)[5], DeepNets("val")[5]
    assert network.channels == 8
    assert network.normal == own.normal
    assert network.key == own.key
    assert network.macs < own.macs / 8


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_cost_is_that_of_the_built_network(split: str, index: int) -> None:
    network = DeepNets(split)[index]
    net = on_meta(network)
    assert all(parameter.is_meta for parameter in net.parameters())
    assert hook_macs(net) == network.macs
    assert sum(parameter.numel() for parameter in net.parameters()) == network.parameter_count


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_every_parameter_is_trained(split: str, index: int) -> None:
    torch.manual_seed(index)
    net = DeepNets(split, channels=4)[index].build()
    scores = net(torch.randn(2, 3, 32, 32))
    nn.functional.cross_entropy(scores, torch.tensor([1, 7])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("split", "index"), MIXED[::3])
def test_depth_is_the_longest_path(split: str, index: int) -> None:
    network = DeepNets(split)[index]
    traced = torch.fx.symbolic_trace(on_meta(network))
    depth: dict[torch.fx.Node, int] = {}
    for node in traced.graph.nodes:
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        counts = isinstance(module, (nn.Conv2d, nn.Linear))
        depth[node] = max((depth[source] for source in node.all_input_nodes), default=0) + counts
    assert network.depth == max(depth.values())


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_graph_claims_every_parameter(split: str, index: int) -> None:
    graph = trace(on_meta(DeepNets(split)[index]), torch.empty(2, 3, 32, 32, device="meta"))
    assert not graph.unreached


def test_block_ends_run_in_order() -> None:
    network = DeepNets("val")[1]
    net, ran = on_meta(network), []
    ends = net.block_ends()
    for end in ends:
        end.register_forward_hook(lambda module, inputs, output: ran.append(module))
    net(torch.empty(1, 3, 32, 32, device="meta"))
    assert ran == list(ends)
    assert len(ran) == network.cells
    assert set(ends) <= set(net.modules())


def test_number_of_classes() -> None:
    net = DeepNets("val", channels=4)[3].build(num_classes=37)
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 37)


@pytest.mark.parametrize("index", [-1, 500, 1.0, True, "0"])
def test_wrong_index(index: object) -> None:
    with pytest.raises(ArgumentError, match=r"from 0 to 499\. Write, for example, DeepNets\('val'"):
        DeepNets("val")[index]


@pytest.mark.parametrize("split", ["test", None, ["val"]])
def test_wrong_split(split: object) -> None:
    with pytest.raises(ArgumentError, match=r"expected one of 'train', 'val', 'id', .*'bn-free'"):
        DeepNets(split)


@pytest.mark.parametrize("channels", [0, 7, -2, True, 32.0, "32"])
def test_wrong_channels(channels: object) -> None:
    with pytest.raises(ArgumentError, match=r"positive even integer.*DeepNets\('val', channels="):
        DeepNets("val", channels=channels)


@pytest.mark.parametrize("num_classes", [0, 1.5, True])
def test_wrong_number_of_classes(num_classes: object) -> None:
    with pytest.raises(ArgumentError, match="num_classes"):
        DeepNets("val")[0].build(num_classes=num_classes)


def test_a_loop_over_a_split_ends_with_it() -> None:
    assert [network.key[2] for network in DeepNets("deep")] == list(range(len(DeepNets("deep"))))
