import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork import attention
from ghnqat_sdk.hypernetwork.decoder import DecoderConfig
from ghnqat_sdk.hypernetwork.encoders import GatedGraphConfig, TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig

DECODER = DecoderConfig(hidden=16, tile=8, kernel=3, banks=4, bank_kernel=3)
CONFIGS = {
    "transformer": HypernetworkConfig(
        encoder=TransformerConfig(width=16, layers=2, heads=2), decoder=DECODER
    ),
    "gated-graph": HypernetworkConfig(encoder=GatedGraphConfig(width=16), decoder=DECODER),
}


@pytest.fixture(params=CONFIGS)
def network(request):
    """Untrained, but for banks that are not zero."""
    torch.manual_seed(0)
    made = GraphHypernetwork(CONFIGS[request.param]).eval()
    banks = made.decoder.banks
    for table in (banks.dense, banks.point, banks.depthwise, banks.gate.weight):
        nn.init.normal_(table, std=0.3)
    return made


def one_weight(shape: tuple[int, ...]) -> ComputationGraph:
    node = Node("conv", "layer", (ParameterSpec("p", shape, "weight"),), kernel=tuple(shape[2:4]))
    return ComputationGraph((Node("input"), node, Node("output")), ((0, 1), (1, 2)))


def traced(*layers: nn.Module) -> ComputationGraph:
    return trace(nn.Sequential(*layers), torch.empty(1, 3, 8, 8))


def test_every_parameter_of_the_graph_is_predicted_in_its_shape(network, diamond):
    (predicted,) = network([diamond])
    shapes = {name: parameter.shape for name, parameter in diamond.parameters.items()}
    assert {name: tensor.shape for name, tensor in predicted.items()} == shapes


def test_a_batch_of_graphs_gives_what_each_gives_alone(network, diamond):
    longer = traced(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)))
    together = network([diamond, longer])
    for graph, predicted in zip((diamond, longer), together, strict=True):
        for name, tensor in network([graph])[0].items():
            torch.testing.assert_close(predicted[name], tensor, rtol=1e-4, atol=1e-5)


def test_no_graph_and_a_graph_without_parameters_have_no_prediction(network, diamond):
    assert network([]) == []
    empty = traced(nn.ReLU(), nn.MaxPool2d(2))
    assert network([empty]) == [{}]
    assert [len(predicted) for predicted in network([empty, diamond])] == [0, 3]


@pytest.mark.parametrize("wrong", [None, "graph", [nn.ReLU()], [None]])
def test_anything_but_graphs_is_refused(network, wrong):
    with pytest.raises(ArgumentError, match=r"hypernetwork\(\[trace\(model\)\]\)"):
        network(wrong)


def test_prediction_depends_on_each_nodes_bits(network, diamond):
    at4, at2 = (network([diamond.with_bits(bits)])[0]["a.weight"] for bits in ((4, 4), (2, 2)))
    activation = network([diamond.with_bits((4, 8))])[0]["a.weight"]
    one_layer = diamond.with_bits(lambda node: (2, 2) if node.module == "b" else (4, 4))
    mixed = network([one_layer])[0]["a.weight"]
    assert not torch.allclose(at4, at2)
    assert not torch.allclose(at4, activation)
    assert not torch.allclose(at4, mixed)


def test_prediction_is_deterministic(network, diamond):
    first, second = (network([diamond])[0]["a.weight"] for _ in range(2))
    assert torch.equal(first, second)


def test_layers_of_other_depths_are_told_apart_by_where_they_stand(network):
    """Of two equal layers in a row, each gets weights of its own."""
    (predicted,) = network([traced(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))])
    assert not torch.allclose(predicted["1.weight"], predicted["2.weight"])


def test_virtual_edges_carry_information(network):
    """A node hears of another one three steps away."""

    def graph(kernel: int) -> ComputationGraph:
        first = Node(
            "conv", "f", (ParameterSpec("f", (4, 3, kernel, kernel), "weight"),), (kernel,) * 2
        )
        last = Node("conv", "l", (ParameterSpec("l", (4, 4, 3, 3), "weight"),), kernel=(3, 3))
        nodes = (Node("input"), first, Node("relu"), Node("max_pool"), last, Node("output"))
        return ComputationGraph(nodes, tuple((i, i + 1) for i in range(5)))

    assert not torch.allclose(network([graph(3)])[0]["l"], network([graph(1)])[0]["l"])


def test_grouped_weights_of_one_shape_differ_by_their_groups(network):
    narrow, wide = (
        traced(nn.Conv2d(3, 4 * groups, 1), nn.Conv2d(4 * groups, 16, 3, groups=groups))
        for groups in (2, 4)
    )
    together = network([narrow, wide])
    for one, predicted in zip((narrow, wide), together, strict=True):
        alone = network([one])[0]["1.weight"]
        torch.testing.assert_close(predicted["1.weight"], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (50, 70, 3, 3), (600, 40, 3, 3)])
def test_layout_of_weights_does_not_change_their_values(network, shape):
    graph = one_weight(shape)
    fast, plain = (network([graph], channels_last=on)[0]["p"] for on in (True, False))
    assert plain.is_contiguous()
    assert fast.stride(1) == 1  # a channels_last convolution reads it without a copy
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)


def test_products_in_half_precision_change_little_and_give_float32(network, diamond):
    exact, half = network([diamond])[0], network([diamond], dtype=torch.bfloat16)[0]
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    for name, tensor in exact.items():
        assert (half[name] - tensor).norm() < 0.02 * tensor.norm()


def test_the_same_graph_at_other_tiles_or_classes_is_cut_anew(diamond):
    """What is worked out of a graph is kept with it, by what it depends on."""
    for decoder, classes in ((DECODER, 10), (DECODER.model_copy(update={"tile": 16}), 7)):
        config = CONFIGS["transformer"].model_copy(
            update={"decoder": decoder, "num_classes": classes}
        )
        assert GraphHypernetwork(config)([diamond])[0]["c.weight"].shape == (10, 12)


def test_attention_in_strips_is_attention_over_the_whole_graph(monkeypatch):
    torch.manual_seed(0)
    network = GraphHypernetwork(CONFIGS["transformer"]).eval()
    layers = [nn.Conv2d(3, 3, 1) for _ in range(20)]
    graphs = [traced(*layers), traced(*layers[:5])]
    whole = network(graphs)
    monkeypatch.setattr(attention, "_STRIP", 7)
    for one, other in zip(whole, network(graphs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight_of_the_hypernetwork(network, diamond):
    parameters = (ParameterSpec("g", (12,), "scale"), ParameterSpec("s", (12,), "shift"))
    norm = Node("batch_norm", "n", parameters)
    weight = ParameterSpec("d", (12, 1, 3, 3), "weight")
    depthwise = Node("depthwise_conv", "d", (weight,), kernel=(3, 3))
    nodes = (*diamond.nodes[:6], norm, depthwise, Node("output"))
    graph = ComputationGraph(nodes, (*diamond.edges[:-1], (5, 6), (6, 7), (7, 8)))
    predicted = network([graph.with_bits((4, 4))])[0].values()
    sum(tensor.square().sum() for tensor in predicted).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_default_sizes_are_those_of_the_field():
    count = sum(p.numel() for p in GraphHypernetwork().parameters())
    assert 1.0e6 < count < 4.0e6


def test_a_config_survives_json_and_is_of_this_layout():
    config = CONFIGS["gated-graph"]
    assert HypernetworkConfig.model_validate_json(config.model_dump_json()) == config
    assert config.format == 2
    with pytest.raises(ValidationError, match="format"):
        HypernetworkConfig(format=1)


def test_a_config_may_say_that_there_is_no_second_layer_as_older_files_do():
    assert DecoderConfig.model_validate({"hidden": 32, "second": 0}) == DecoderConfig(hidden=32)
    with pytest.raises(ValidationError, match="second"):
        DecoderConfig.model_validate({"second": 24})


def test_a_config_that_is_none_is_refused():
    with pytest.raises(ArgumentError, match=r"config is a dict; expected a HypernetworkConfig"):
        GraphHypernetwork({"num_classes": 10})
