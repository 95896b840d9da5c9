"""Hand-made networks have the computation graphs of torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.spaces.blocks import Style
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.family_blocks import Kind
from ghnqat_sdk.training.spaces.family_network import Head, Plan, Stage, Stem, describe
from ghnqat_sdk.training.spaces.family_recipes import FAMILIES

COUNTERPARTS = {
    "vgg11_bn": "plain",
    "vgg11": "plain",
    "resnet18": "residual",
    "resnet50": "bottleneck",
    "regnet_x_400mf": "regnet",
    "regnet_y_400mf": "regnet",
    "resnext50_32x4d": "regnet",
    "densenet121": "densenet",
    "mobilenet_v2": "inverted",
    "mnasnet0_5": "inverted",
    "mobilenet_v3_small": "inverted_se",
    "efficientnet_b0": "inverted_se",
    "shufflenet_v2_x0_5": "shufflenet",
    "squeezenet1_1": "squeezenet",
    "googlenet": "googlenet",
    "convnext_tiny": "convnext",
}
"""Networks of torchvision, and the family that each belongs to."""

RELU = Style("batch", "relu", bias=False)
IMAGENET = Stem("conv", 7, 2, pooled=True)


def row(ratio: float, blocks: int, stride: int, block: str, **fields: int | str) -> Stage:
    return Stage(ratio, blocks, stride, Kind(block, **fields))


def rows(block: str, *shapes: tuple[float, int, int], **fields: int | str) -> tuple[Stage, ...]:
    return tuple(row(*shape, block, **fields) for shape in shapes)


MOBILENET = (
    row(1, 1, 1, "inverted"),
    *rows(
        "inverted",
        (1.5, 2, 2),
        (2, 3, 2),
        (4, 4, 2),
        (6, 3, 1),
        (10, 3, 2),
        (20, 1, 1),
        expansion=6,
    ),
)
EFFICIENTNET = (
    row(1, 1, 1, "inverted", gate="efficientnet"),
    row(1.5, 2, 2, "inverted", gate="efficientnet", expansion=6),
    row(2.5, 2, 2, "inverted", gate="efficientnet", expansion=6, kernel=5),
    row(5, 3, 2, "inverted", gate="efficientnet", expansion=6),
    row(7, 3, 1, "inverted", gate="efficientnet", expansion=6, kernel=5),
    row(12, 4, 2, "inverted", gate="efficientnet", expansion=6, kernel=5),
    row(20, 1, 1, "inverted", gate="efficientnet", expansion=6),
)
REGNET = rows("regnet", (1, 1, 2), (2, 3, 2), (4, 6, 2), (9, 6, 2), group_width=8, gate="regnet")
PLANS = {
    "vgg11_bn": Plan(
        "plain", Style("batch", "relu", True), 64, 512, Stem("none"),
        rows("plain", (1, 1, 2), (2, 1, 2), (4, 2, 2), (8, 2, 2), (8, 2, 2)),
        Head(side=7, hidden=(64, 64)),
    ),
    "resnet18": Plan(
        "residual", RELU, 64, 512, IMAGENET,
        rows("basic", (1, 2, 1), (2, 2, 2), (4, 2, 2), (8, 2, 2)), Head(),
    ),
    "resnet50": Plan(
        "bottleneck", RELU, 256, 1024, IMAGENET._replace(ratio=0.25),
        rows("bottleneck", (1, 3, 1), (2, 4, 2), (4, 6, 2), (8, 3, 2), expansion=4), Head(),
    ),
    "regnet_y_400mf": Plan("regnet", RELU, 48, 512, Stem("conv", 3, 2, ratio=0.66), REGNET, Head()),
    "densenet121": Plan(
        "densenet", RELU, 32, 512, IMAGENET._replace(ratio=2),
        rows("dense", (1, 6, 1), (1, 12, 2), (1, 24, 2), (1, 16, 2)), Head(activates=True),
    ),
    "mobilenet_v2": Plan(
        "inverted", Style("batch", "relu6", False), 16, 512, Stem("conv", 3, 2, ratio=2), MOBILENET,
        Head(convolution=1280),
    ),
    "efficientnet_b0": Plan(
        "inverted_se", Style("batch", "silu", False), 16, 512, Stem("conv", 3, 2, ratio=2),
        EFFICIENTNET, Head(convolution=1280),
    ),
    "shufflenet_v2_x0_5": Plan(
        "shufflenet", RELU, 48, 512, Stem("conv", 3, 2, pooled=True, ratio=0.5),
        rows("shuffled", (1, 4, 2), (2, 8, 2), (4, 4, 2)), Head("mean", convolution=1024),
    ),
    "squeezenet1_1": Plan(
        "squeezenet", Style("none", "relu", True), 128, 512,
        Stem("unpadded", 3, 2, pooled=True, ratio=0.5),
        rows("fire", (1, 2, 1), (2, 2, 2), (3, 2, 2), (4, 2, 1)), Head("conv"),
    ),
    "convnext_tiny": Plan(
        "convnext", Style("layer", "gelu", True), 96, 1024, Stem("patch", stride=4),
        rows("convnext", (1, 3, 1), (2, 3, 2), (4, 9, 2), (8, 3, 2), kernel=7), Head("norm"),
    ),
}  # fmt: skip
"""The layouts of torchvision's networks, as plans; some with fewer channels."""


def graph_of(model: nn.Module) -> ComputationGraph:
    return trace(model, torch.empty(2, 3, 32, 32, device="meta"))


def torchvision_graph(name: str) -> ComputationGraph:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    # regnet computes its channels with tensors, which need values.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return graph_of(getattr(torchvision.models, name)(**options))


@pytest.mark.parametrize("name", PLANS)
def test_plan_of_torchvisions_layout_gives_torchvisions_graph(name: str) -> None:
    with torch.device("meta"):
        graph = graph_of(describe(PLANS[name], 1000).build())
    expected = torchvision_graph(name)
    nodes, expected_nodes = (
        [(node.op, node.kernel, node.stride) for node in each.nodes] for each in (graph, expected)
    )
    assert nodes == expected_nodes
    assert graph.edges == expected.edges


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_some_network_has_exactly_the_operations_of_torchvisions(name: str) -> None:
    expected = {node.op for node in torchvision_graph(name).nodes}
    space = Families("val")
    for index in range(FAMILIES.index(COUNTERPARTS[name]), len(space), len(FAMILIES)):
        with torch.device("meta"):
            graph = graph_of(space[index].build())
        if {node.op for node in graph.nodes} == expected:
            return
    pytest.fail(f"no network of the family has the operations of {name}")
