"""The promises of ConvNets-250K (re-created): reproducible, of known cost, and trainable."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys

import pytest
import torch
import torch.fx
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.spaces import (
    MAX_PARAMETERS,
    MAX_TRAIN_DEPTH,
    MAX_TRAIN_WIDTH,
    SPLITS,
    Architecture,
    ArchitectureSpace,
    sample_architecture,
)

MIXED = [(split, index) for split in SPLITS for index in range(4)]


@pytest.fixture(scope="module")
def train() -> list[Architecture]:
    return [sample_architecture("train", index * 599) for index in range(400)]


def hook_cost(net: nn.Module) -> tuple[int, int]:
    """MACs and largest channel count, counted while an image passes."""
    macs, width = [], [0]

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())
        if isinstance(module, nn.Conv2d):
            width.append(max(module.in_channels, module.out_channels))

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    return sum(macs), max(width)


def describe() -> str:
    text = "\n".join(repr(sample_architecture(split, index)) for split in SPLITS for index in range(0, 100, 9))
    return hashlib.sha256(text.encode()).hexdigest()


def test_same_net_in_every_process() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_spaces; print(test_spaces.describe())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "4242"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == describe()


def test_the_mapping_is_frozen() -> None:
    assert describe() == "91de35fc93beb7847068dd06362a2cc4e88674012ff1320c05c226cfa4388720", (
        "(split, index) must keep its meaning once nets have been trained"
    )


def test_different_indices_give_different_nets(train: list[Architecture]) -> None:
    assert len({(a.family, a.base, a.growth, a.stem, a.stages, a.head, a.macs) for a in train}) > 380
    assert sample_architecture("val", 0) != sample_architecture("id", 0)
    assert len({hash(a) for a in train}) == len(train)


def test_costs_of_training_nets(train: list[Architecture]) -> None:
    macs = [a.macs for a in train]
    quartiles = statistics.quantiles(macs, n=4)
    assert 2.5e6 < quartiles[0] < 4.5e6 and 6e6 < quartiles[1] < 10e6 and 14e6 < quartiles[2] < 23e6
    assert min(macs) >= 0.7e6 and max(macs) <= 100e6
    assert max(a.parameter_count for a in train) <= MAX_PARAMETERS
    assert max(a.depth for a in train) <= MAX_TRAIN_DEPTH and max(a.width for a in train) <= MAX_TRAIN_WIDTH


def test_mix_of_training_nets(train: list[Architecture]) -> None:
    def share(fact) -> float:
        return sum(map(fact, train)) / len(train)

    assert 0.05 < share(lambda a: not a.has_norm) < 0.15
    assert 0.02 < share(lambda a: a.norm == "group") < 0.09
    assert 0.08 < share(lambda a: not a.head.pooled) < 0.22
    assert 0.15 < share(lambda a: a.simple) < 0.45
    assert share(lambda a: a.macs < 4e6) > 0.22
    assert {a.family for a in train} == {
        "cells", "plain", "residual", "bottleneck", "separable", "inverted", "grouped"
    }  # fmt: skip


def test_out_of_distribution_splits() -> None:
    deep, wide, free = (list(ArchitectureSpace(split)) for split in ("deep", "wide", "bn-free"))
    assert len(deep) == len(wide) == len(free) == 100
    assert min(a.depth for a in deep) >= 2 * MAX_TRAIN_DEPTH and max(a.macs for a in deep) <= 100e6
    assert min(a.width for a in wide) >= 2 * MAX_TRAIN_WIDTH and max(a.macs for a in wide) <= 300e6
    assert not any(a.has_norm for a in free)


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_cost_is_that_of_the_built_net(split: str, index: int) -> None:
    architecture = sample_architecture(split, index)
    with torch.device("meta"):
        net = architecture.build()
    assert all(parameter.is_meta for parameter in net.parameters())
    assert hook_cost(net) == (architecture.macs, architecture.width)
    assert sum(parameter.numel() for parameter in net.parameters()) == architecture.parameter_count
    norms = [m for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    assert bool(norms) == architecture.has_norm


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_every_parameter_is_trained(split: str, index: int) -> None:
    torch.manual_seed(index)
    net = sample_architecture(split, index).build()
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10) and torch.isfinite(logits).all()
    nn.functional.cross_entropy(logits, torch.tensor([1, 7])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("split", "index"), MIXED)
def test_depth_is_the_longest_path(split: str, index: int) -> None:
    architecture = sample_architecture(split, index)
    with torch.device("meta"):
        traced = torch.fx.symbolic_trace(architecture.build())
    depth: dict[torch.fx.Node, int] = {}
    for node in traced.graph.nodes:
        layer = node.op == "call_module" and isinstance(traced.get_submodule(node.target), (nn.Conv2d, nn.Linear))
        depth[node] = max((depth[source] for source in node.all_input_nodes), default=0) + layer
    assert architecture.depth == max(depth.values())


def test_number_of_classes() -> None:
    net = sample_architecture("val", 3).build(num_classes=37)
    assert net.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 37)


def test_space_is_a_sequence() -> None:
    space = ArchitectureSpace("val")
    assert len(space) == 500 and space[7] == sample_architecture("val", 7)
    assert len(ArchitectureSpace("train")) == 250_000
    assert eval(repr(space)).split == "val"


@pytest.mark.parametrize("index", [-1, 500, 1.0, True, "0"])
def test_wrong_index(index: object) -> None:
    with pytest.raises(ArgumentError, match=r"from 0 to 499"):
        ArchitectureSpace("val")[index]


def test_wrong_split_and_classes() -> None:
    for call in (lambda: ArchitectureSpace("test"), lambda: sample_architecture("test", 0)):
        with pytest.raises(ArgumentError, match=r"'test'.*train, val"):
            call()
    with pytest.raises(ArgumentError, match=r"num_classes"):
        sample_architecture("val", 0).build(num_classes=0)
