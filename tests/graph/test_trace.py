import operator

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace

IMAGE = torch.zeros(2, 3, 16, 16)


def ops(graph: ComputationGraph) -> list[str]:
    return [node.op for node in graph.nodes]


def claimed(graph: ComputationGraph) -> dict[str, tuple[str, str]]:
    """Parameter name to (node type, role)."""
    return {p.name: (node.op, p.role) for node in graph.nodes for p in node.parameters}


def test_a_residual_net_gives_the_graph_written_by_hand():
    def forward(m, x):
        x = m.stem(x)
        x = F.relu(m.norm(m.conv(x))) + x
        return m.head(x.mean((2, 3)))

    model = Model(
        forward,
        stem=nn.Conv2d(3, 8, 3, stride=2, padding=1),
        conv=nn.Conv2d(8, 8, 5, padding=4, dilation=2, bias=False),
        norm=nn.BatchNorm2d(8),
        head=nn.Linear(8, 10),
    )
    graph = trace(model, IMAGE)
    expected = "input conv bias conv batch_norm relu sum global_pool classifier bias output".split()
    assert ops(graph) == expected
    assert graph.edges == (
        (0, 1),
        (1, 2),
        (2, 3),
        (2, 6),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (9, 10),
    )
    stem, conv = graph.nodes[1], graph.nodes[3]
    assert (stem.kernel, stem.stride, stem.module) == ((3, 3), (2, 2), "stem")
    assert (conv.kernel, conv.dilation, conv.parameters[0].shape) == ((5, 5), (2, 2), (8, 8, 5, 5))
    assert claimed(graph)["norm.weight"] == ("batch_norm", "scale")
    assert claimed(graph)["norm.bias"] == ("batch_norm", "shift")
    assert graph.unreached == {}


@pytest.mark.parametrize(
    ("layer", "op"),
    [
        (nn.Conv2d(3, 6, 3), "conv"),
        (nn.Conv2d(3, 6, (1, 7), padding="same"), "conv"),
        (nn.Conv2d(3, 6, 3, groups=3), "depthwise_conv"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4)), "grouped_conv"),
        (nn.ConvTranspose2d(3, 6, 3), "transposed_conv"),
        (nn.GroupNorm(3, 3), "group_norm"),
        (nn.LayerNorm(16), "layer_norm"),
        (nn.InstanceNorm2d(3, affine=True), "instance_norm"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardswish(), "hardswish"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(), "prelu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Softmax(1), "softmax"),
        (nn.MaxPool2d(3, 2), "max_pool"),
        (nn.AvgPool2d(2), "avg_pool"),
        (nn.AdaptiveAvgPool2d(1), "global_pool"),
        (nn.AdaptiveAvgPool2d(4), "adaptive_pool"),
        (nn.AdaptiveMaxPool2d(4), "adaptive_pool"),
        (nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(4)), "adaptive_pool"),
        (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.AdaptiveMaxPool3d(2)), "adaptive_pool"),
        (nn.Upsample(scale_factor=2), "interpolate"),
    ],
)
def test_every_kind_of_layer_has_its_node_type(layer, op):
    graph = trace(nn.Sequential(layer), IMAGE)
    assert op in ops(graph)
    assert set(graph.parameters) == {name for name, _ in nn.Sequential(layer).named_parameters()}


def test_pooling_records_kernel_and_stride():
    pool = trace(nn.Sequential(nn.MaxPool2d(3, stride=2)), IMAGE).nodes[1]
    assert (pool.kernel, pool.stride) == ((3, 3), (2, 2))


def test_data_flow_through_lists_concatenation_and_products():
    def forward(m, x):
        branches = [branch(x) for branch in m.branches]
        gate = torch.sigmoid(m.gate(x))
        return torch.cat([*branches, x * gate], dim=1)

    model = Model(
        forward,
        branches=nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(2)),
        gate=nn.Conv2d(3, 3, 1),
    )
    graph = trace(model, IMAGE)
    concat = ops(graph).index("concat")
    assert len([edge for edge in graph.edges if edge[1] == concat]) == 3
    assert "product" in ops(graph)


@pytest.mark.parametrize(
    ("join", "op"),
    [
        (operator.sub, "sum"),
        (operator.isub, "sum"),
        (torch.Tensor.sub_, "sum"),
        (torch.subtract, "sum"),
        (torch.rsub, "sum"),
        (operator.truediv, "product"),
        (operator.itruediv, "product"),
        (torch.Tensor.div_, "product"),
        (torch.multiply, "product"),
    ],
)
def test_two_branches_join_however_they_are_subtracted_or_divided(join, op):
    branches = {name: nn.Conv2d(3, 4, 1, bias=False) for name in ("a", "b")}
    graph = trace(Model(lambda m, x: F.relu(join(m.a(x), m.b(x))), **branches), IMAGE)
    assert ops(graph)[3:] == [op, "relu", "output"]
    assert {(1, 3), (2, 3)} <= set(graph.edges)


def test_arithmetic_with_numbers_is_no_node():
    model = Model(lambda m, x: 1 / (2 - (x + 1).flatten(1) / 3))
    assert ops(trace(model, IMAGE)) == ["input", "output"]


def test_parameters_outside_layers_are_claimed_by_the_call_that_uses_them():
    def forward(m, x):
        x = F.conv2d(x, m.kernel, padding=1) * m.layer_scale
        tokens = torch.cat([m.token.expand(len(x), -1, -1), x.flatten(2).mT], 1) + m.position
        return tokens[:, 0] @ m.head

    model = Model(
        forward,
        kernel=nn.Parameter(torch.randn(4, 3, 3, 3)),
        layer_scale=nn.Parameter(torch.ones(4, 1, 1)),
        token=nn.Parameter(torch.zeros(1, 1, 4)),
        position=nn.Parameter(torch.zeros(1, 257, 4)),
        head=nn.Parameter(torch.randn(4, 10)),
    )
    assert claimed(trace(model, IMAGE)) == {
        "kernel": ("conv", "weight"),
        "layer_scale": ("product", "scale"),
        "token": ("concat", "table"),
        "position": ("sum", "table"),
        "head": ("matmul", "weight"),
    }


def test_weights_computed_from_parameters_are_claimed():
    def forward(m, x):
        weight = m.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std(
            (1, 2, 3), keepdim=True
        )
        return m.normed(F.conv2d(x, weight, m.conv.bias))

    model = Model(
        forward,
        conv=nn.Conv2d(3, 4, 3),
        normed=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    )
    graph = trace(model, IMAGE)
    assert claimed(graph)["conv.weight"] == ("conv", "weight")
    assert claimed(graph)["normed.parametrizations.weight.original1"] == ("conv", "weight")
    assert set(graph.unreached) == {"normed.parametrizations.weight.original0"}


def test_attention_keeps_all_its_parameters():
    model = Model(
        lambda m, x: m.attention(x, x, x)[0],
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    graph = trace(model, torch.empty(2, 5, 8))
    assert {op for op, _ in claimed(graph).values()} == {"multi_head_attention"}
    assert set(graph.parameters) == {name for name, _ in model.named_parameters()}


def test_a_shared_layer_is_two_nodes_and_claims_once():
    shared = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    graph = trace(nn.Sequential(shared, nn.ReLU(), shared), IMAGE)
    assert ops(graph).count("conv") == 2
    assert [len(node.parameters) for node in graph.nodes if node.op == "conv"] == [1, 0]


def test_classifiers_are_the_last_weighted_layers_on_each_path():
    def forward(m, x):
        return {
            "main": m.main(x.mean((2, 3))),
            "extra": (F.relu(m.map(x)).mean((2, 3)), m.aux(m.hidden(x.mean((2, 3))))),
        }

    model = Model(
        forward,
        main=nn.Linear(3, 5),
        map=nn.Conv2d(3, 5, 1),
        hidden=nn.Linear(3, 4),
        aux=nn.Linear(4, 5),
    )
    assert [n.module for n in trace(model, IMAGE).nodes if n.op == "classifier"] == [
        "main",
        "map",
        "aux",
    ]


def test_several_inputs_and_keyword_arguments():
    model = Model(lambda m, x, *, y: m.a(x) + m.b(y), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(1, 4, 1))
    graph = trace(model, {"x": IMAGE, "y": torch.empty(2, 1, 16, 16)})
    assert ops(graph).count("input") == 2


def test_shapes_are_guessed_for_images_of_any_channels_signals_and_features():
    assert (
        trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))).unreached
        == {}
    )
    assert trace(nn.Sequential(nn.Conv1d(5, 4, 3))).nodes[1].kernel == (1, 3)
    assert trace(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))).unreached == {}


def test_control_flow_on_values_runs_on_numbers():
    def forward(m, x):
        return m.conv(x) if x.abs().mean().item() >= 0 else x

    graph = trace(Model(forward, conv=nn.Conv2d(3, 4, 3)), IMAGE)
    assert set(graph.parameters) == {"conv.weight", "conv.bias"}


def test_a_model_that_reads_values_finds_its_size_among_the_guesses():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 30 * 30, 10)

        def forward(self, x):
            x = self.conv(x)
            if x.mean() > 0:
                x = x.relu()
            return self.head(x.flatten(1))

    model = Fixed()
    assert set(trace(model).parameters) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_frozen_and_other_precision_models_are_traced(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype).requires_grad_(False)
    assert len(trace(model).parameters) == 4


def test_the_graph_is_the_same_every_time():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert trace(model) == trace(model)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: "resnet18", ArgumentError, "expected an nn.Module"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), TraceError, "Run the model once"),
        (lambda: torch.compile(nn.Conv2d(3, 4, 3)), TraceError, "_orig_mod"),
        (lambda: AveragedModel(nn.Conv2d(3, 4, 3)), TraceError, "model.module"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(9999, 3)),
            TraceError,
            "example_inputs=",
        ),
        (lambda: Model(lambda m, x: None, conv=nn.Conv2d(3, 4, 3)), TraceError, "output"),
    ],
)
def test_what_cannot_be_traced_says_what_to_do(make, error, message):
    with pytest.raises(error, match=message):
        trace(make())
