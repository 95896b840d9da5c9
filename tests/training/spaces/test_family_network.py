"""The networks of the space of hand-made ones: of known cost, and trainable."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.quantization.convert import to_fake_quantized
from ghnqat_sdk.quantization.ranges import ClippedRanges
from ghnqat_sdk.training.spaces.families import Families, FamilyNet
from ghnqat_sdk.training.spaces.family_recipes import FAMILIES

VAL = Families("val")
SEVERAL = [
    pytest.param(index, id=f"{FAMILIES[index % len(FAMILIES)]}-{index}")
    for index in range(2 * len(FAMILIES))
]
ALWAYS = {
    "plain": {"conv", "bias", "max_pool", "classifier"},
    "residual": {"conv", "sum", "classifier"},
    "bottleneck": {"conv", "sum", "classifier"},
    "regnet": {"grouped_conv", "sum", "relu"},
    "preact": {"conv", "sum"},
    "wide": {"conv", "sum", "relu"},
    "densenet": {"conv", "batch_norm", "relu", "concat", "avg_pool"},
    "mobilenet_v1": {"conv", "depthwise_conv"},
    "inverted": {"conv", "depthwise_conv"},
    "inverted_se": {"conv", "depthwise_conv", "sigmoid", "product"},
    "shufflenet": {"conv", "depthwise_conv", "concat", "global_pool"},
    "squeezenet": {"conv", "bias", "max_pool", "concat"},
    "googlenet": {"conv", "batch_norm", "relu", "concat"},
    "convnext": {"depthwise_conv", "layer_norm", "linear", "gelu", "product", "sum"},
    "repvgg": {"conv", "batch_norm", "sum", "relu"},
}
"""Operations that every network of a family has."""


def on_meta(network: FamilyNet) -> nn.Module:
    with torch.device("meta"):
        return network.build()


def graph_of(model: nn.Module) -> ComputationGraph:
    return trace(model, torch.empty(2, 3, 32, 32, device="meta"))


@cache
def val_graph(index: int) -> ComputationGraph:
    return graph_of(on_meta(VAL[index]))


def operations(graph: ComputationGraph) -> set[str]:
    return {node.op for node in graph.nodes}


def counted_macs(model: nn.Module) -> int:
    """Counted while an image passes, whatever the description says."""
    macs = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        macs.append(output.numel() * module.weight[0].numel())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    return sum(macs)


def longest_path(graph: ComputationGraph) -> int:
    """Convolutions and linear layers on it."""
    depths = [0] * len(graph)
    for source, target in graph.edges:
        weighted = graph.nodes[target].quantized
        depths[target] = max(depths[target], depths[source] + weighted)
    return max(depths)


@pytest.mark.parametrize("index", SEVERAL)
def test_cost_is_that_of_the_built_network(index: int) -> None:
    network = VAL[index]
    model = on_meta(network)
    parameters = list(model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert counted_macs(model) == network.macs
    assert sum(parameter.numel() for parameter in parameters) == network.parameter_count
    assert longest_path(val_graph(index)) == network.depth


@pytest.mark.parametrize("index", SEVERAL)
def test_graph_has_every_parameter_and_the_operations_of_its_family(index: int) -> None:
    graph = val_graph(index)
    assert not graph.unreached
    assert operations(graph) >= ALWAYS[VAL[index].family]
    assert "other" not in operations(graph)


@pytest.mark.parametrize("index", SEVERAL)
def test_blocks_end_in_order_of_execution_with_images(index: int) -> None:
    model = on_meta(VAL[index])
    ends: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert output.ndim == 4 and output.shape[0] == 2 and output.shape[1] >= 16
        ends.append(module)

    for block in model.block_ends():
        block.register_forward_hook(note)
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert len(ends) >= 3 and ends == list(model.block_ends())


@pytest.mark.parametrize("index", SEVERAL[: len(FAMILIES)])
def test_every_layer_can_be_fake_quantized(index: int) -> None:
    model = on_meta(VAL[index])
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    state = to_fake_quantized(model, (4, 4), ClippedRanges(), warn=False)
    assert len(state.bits) == len(layers) and not state.unquantized


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_trained(family: str) -> None:
    candidates = [VAL[FAMILIES.index(family) + turn * len(FAMILIES)] for turn in range(20)]
    network = min(candidates, key=lambda candidate: candidate.macs + candidate.parameter_count)
    torch.manual_seed(0)
    model = network.build()
    scores = model(torch.randn(2, 3, 32, 32))
    assert scores.shape == (2, 10) and torch.isfinite(scores).all()
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_number_of_classes() -> None:
    with torch.device("meta"):
        models = [VAL[index].build(num_classes=37) for index in range(len(FAMILIES))]
    images = torch.zeros(2, 3, 32, 32, device="meta")
    assert {tuple(model(images).shape) for model in models} == {(2, 37)}
