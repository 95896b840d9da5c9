import pytest
import torch
from torch import Tensor, nn

from ghnqat_sdk.graph.graph import ComputationGraph, Node, Parameter
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.hypernetwork import encoders
from ghnqat_sdk.hypernetwork.decoder import Decoder, DecoderConfig, Request
from ghnqat_sdk.hypernetwork.encoders import GatedGraphConfig, TransformerConfig
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig

DECODER = DecoderConfig(hidden=16, tile=8, kernel=3)
CONFIGS = {
    "transformer": HypernetworkConfig(encoder=TransformerConfig(width=16, layers=2, heads=2), decoder=DECODER),
    "gated-graph": HypernetworkConfig(encoder=GatedGraphConfig(width=16), decoder=DECODER),
}


@pytest.fixture(params=CONFIGS)
def network(request):
    torch.manual_seed(0)
    return GraphHypernetwork(CONFIGS[request.param]).eval()


def one_weight(shape: tuple[int, ...], op: str = "conv", role: str = "weight") -> ComputationGraph:
    node = Node(op, "layer", (Parameter("p", shape, role),), kernel=tuple(shape[2:4]) if len(shape) == 4 else (1, 1))
    return ComputationGraph((Node("input"), node, Node("output")), ((0, 1), (1, 2)))


def test_every_parameter_of_the_graph_is_predicted_in_its_shape(network, diamond):
    (predicted,) = network([diamond])
    assert {name: t.shape for name, t in predicted.items()} == {n: p.shape for n, p in diamond.parameters.items()}


def test_a_batch_of_graphs_gives_what_each_gives_alone(network, diamond):
    longer = trace(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))), torch.empty(1, 3, 8, 8))
    together = network([diamond, longer])
    for graph, predicted in zip((diamond, longer), together, strict=True):
        for name, tensor in network([graph])[0].items():
            torch.testing.assert_close(predicted[name], tensor, rtol=1e-4, atol=1e-5)


def test_prediction_depends_on_each_nodes_bits(network, diamond):
    at4, at2 = (network([diamond.with_bits(bits)])[0]["a.weight"] for bits in ((4, 4), (2, 2)))
    activation = network([diamond.with_bits((4, 8))])[0]["a.weight"]
    mixed = network([diamond.with_bits(lambda n: (2, 2) if n.module == "b" else (4, 4))])[0]["a.weight"]
    assert not torch.allclose(at4, at2)
    assert not torch.allclose(at4, activation)
    assert not torch.allclose(at4, mixed)


def test_prediction_is_deterministic(network, diamond):
    assert torch.equal(network([diamond])[0]["a.weight"], network([diamond])[0]["a.weight"])


def test_virtual_edges_carry_information(network):
    """A node hears of another one three steps away."""

    def graph(kernel: int) -> ComputationGraph:
        first = Node("conv", "f", (Parameter("f", (4, 3, kernel, kernel), "weight"),), kernel=(kernel, kernel))
        last = Node("conv", "l", (Parameter("l", (4, 4, 3, 3), "weight"),), kernel=(3, 3))
        nodes = (Node("input"), first, Node("relu"), Node("max_pool"), last, Node("output"))
        return ComputationGraph(nodes, tuple((i, i + 1) for i in range(5)))

    assert not torch.allclose(network([graph(3)])[0]["l"], network([graph(1)])[0]["l"])


@pytest.mark.parametrize("shape", [(64, 48, 3, 3), (40, 40, 1, 1), (33, 100), (600, 33), (90, 400, 1, 1)])
def test_tensors_larger_than_a_tile_have_full_rank_and_no_equal_filters(network, shape):
    weight = network([one_weight(shape)])[0]["p"].flatten(1)
    assert torch.linalg.matrix_rank(weight) > 2 * 8  # a repeated 8 × 8 tile has rank 8 · K · K at most, 8 for K = 1
    assert torch.unique(weight, dim=0).shape[0] == shape[0]


@pytest.mark.parametrize(
    ("shape", "op", "role"),
    [
        ((20, 1, 5, 5), "depthwise_conv", "weight"),
        ((12, 3, 7, 1), "conv", "weight"),
        ((12, 3, 11, 11), "conv", "weight"),
        ((6, 4, 3), "conv", "weight"),
        ((6, 4, 3, 3, 3), "conv", "weight"),
        ((100,), "batch_norm", "scale"),
        ((100,), "bias", "bias"),
        ((1, 17, 40), "sum", "table"),
        ((10, 30), "classifier", "weight"),
        ((7, 30), "classifier", "weight"),
        ((10, 30, 1, 1), "classifier", "weight"),
        ((1,), "prelu", "slope"),
        ((40, 1, 1), "product", "scale"),
    ],
)
def test_any_shape_is_decoded_finite_and_of_sensible_size(network, shape, op, role):
    tensor = network([one_weight(shape, op, role)])[0]["p"]
    assert tensor.shape == shape
    assert tensor.isfinite().all()
    assert tensor.abs().max() < 10


@pytest.mark.parametrize("second", [0, 24])
@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (12, 2), (24, 2), (32, 2)])
def test_a_grouped_weight_is_the_blocks_of_the_dense_one_that_its_groups_keep(channels, groups, second):
    """A channel then means the same in both, and grouped layers learn from dense ones."""
    torch.manual_seed(0)
    decoder = Decoder(DECODER.model_copy(update={"second": second}), width=16, num_classes=10)
    nodes, size = torch.randn(1, 16), channels // groups

    def decode(op: str, depth: int, groups: int) -> Tensor:
        parameter = Parameter("p", (channels, depth, 3, 3), "weight")
        return decoder([Request(nodes, Node(op, groups=groups, kernel=(3, 3)), parameter)])[0][0]

    grouped, dense = decode("grouped_conv", size, groups), decode("conv", channels, 1) * groups**0.5  # by fan-in
    for first in range(0, channels, DECODER.tile):  # where a tile begins with a group, its places are the same
        if first % size == 0:
            rows = slice(first, min(first + size, first + DECODER.tile))
            columns = slice(first, rows.stop)
            torch.testing.assert_close(grouped[rows, : rows.stop - first], dense[rows, columns])
    assert len(torch.unique(grouped.flatten(1), dim=0)) == channels


def test_grouped_weights_of_one_shape_differ_by_their_groups(network):
    def graph(groups: int) -> ComputationGraph:
        model = nn.Sequential(nn.Conv2d(3, 4 * groups, 1), nn.Conv2d(4 * groups, 16, 3, groups=groups))
        return trace(model, torch.empty(1, 3, 8, 8))

    narrow, wide = graph(2), graph(4)
    together = network([narrow, wide])
    for one, predicted in zip((narrow, wide), together, strict=True):
        torch.testing.assert_close(predicted["1.weight"], network([one])[0]["1.weight"], rtol=1e-4, atol=1e-5)


def test_weights_are_normalised_by_fan_in():
    torch.manual_seed(0)
    network = GraphHypernetwork()
    wide = network([one_weight((64, 256, 3, 3))])[0]["p"]
    assert 0.5 < wide.std().item() * (256 * 9 / 2) ** 0.5 < 2.0


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (12, 12, 1, 5), (50, 70, 3, 3), (600, 40, 3, 3)])
def test_layout_of_weights_does_not_change_their_values(network, shape):
    graph = one_weight(shape)
    fast, plain = network([graph])[0]["p"], network([graph], channels_last=False)[0]["p"]
    assert plain.is_contiguous()
    assert fast.stride(1) == 1  # a channels_last convolution reads it without a copy
    torch.testing.assert_close(fast, plain, rtol=0, atol=0)


def test_gradients_reach_every_tile_of_a_large_weight(network):
    weight = network([one_weight((100, 100, 1, 1))])[0]["p"]
    (gradient,) = torch.autograd.grad(weight.square().sum(), [network.decoder.place_in.weight])
    assert gradient.abs().sum() > 0


def test_attention_in_strips_is_attention_over_the_whole_graph(monkeypatch):
    torch.manual_seed(0)
    network = GraphHypernetwork(CONFIGS["transformer"]).eval()
    wide = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(20)))
    graphs = [trace(wide, torch.empty(1, 3, 8, 8)), trace(wide[:5], torch.empty(1, 3, 8, 8))]
    whole = network(graphs)
    monkeypatch.setattr(encoders, "_STRIP", 7)
    for one, other in zip(whole, network(graphs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight_of_the_hypernetwork(network, diamond):
    norm = Node("batch_norm", "n", (Parameter("g", (12,), "scale"), Parameter("s", (12,), "shift")))
    depthwise = Node("depthwise_conv", "d", (Parameter("d", (12, 1, 3, 3), "weight"),), kernel=(3, 3))
    nodes = (*diamond.nodes[:6], norm, depthwise, Node("output"))
    graph = ComputationGraph(nodes, (*diamond.edges[:-1], (5, 6), (6, 7), (7, 8)))
    sum(t.square().sum() for t in network([graph.with_bits((4, 4))])[0].values()).backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_default_sizes_are_those_of_the_field():
    count = sum(p.numel() for p in GraphHypernetwork().parameters())
    assert 1.0e6 < count < 2.0e6
