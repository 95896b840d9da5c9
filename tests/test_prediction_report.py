"""The report of a prediction names all that computes with a weight and is not quantized."""

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import nn
from torchvision.ops import DeformConv2d

import ghnqat_sdk as gq
from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.quantization.state import QuantizationState
from ghnqat_sdk.quantization.unquantized import left_in_float


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 9)


def over_places(forward, **parts) -> nn.Module:
    """A module that computes on the places of an image as a sequence."""
    return Model(
        lambda m, x: forward(m, x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
        **parts,
    )


FLOAT = {
    "a convolution by function": (
        Model(lambda m, x: F.conv2d(x, m.weight, padding=1), weight=parameter(8, 8, 3, 3)),
        {"1": "conv2d"},
    ),
    "a transposed convolution by function": (
        Model(lambda m, x: F.conv_transpose2d(x, m.weight, padding=1), weight=parameter(8, 8, 3,
        3)),
        {"1": "conv_transpose2d"},
    ),
    "a deformable convolution": (
        Model(
            lambda m, x: m.conv(x, m.offsets(x)),
            conv=DeformConv2d(8, 8, 3, padding=1),
            offsets=nn.Conv2d(8, 18, 3, padding=1),
        ),
        {"1.conv": "deform"},
    ),
    "attention": (
        over_places(lambda m, x: m.mix(x, x, x)[0], mix=nn.MultiheadAttention(8, 2)),
        {"1.mix": "MultiheadAttention", "1.mix.out_proj": "reads its weight"},
    ),
    "a recurrent layer": (over_places(lambda m, x: m.mix(x)[0], mix=nn.GRU(8, 8)),
    {"1.mix": "GRU"}), "a recurrent cell": (
        over_places(lambda m, x: torch.stack([m.mix(each) for each in x]), mix=nn.GRUCell(8, 8)),
        {"1.mix": "GRUCell"},
    ),
    "a bilinear layer": (
        over_places(lambda m, x: m.mix(x, x), mix=nn.Bilinear(8, 8, 8)),
        {"1.mix": "Bilinear"},
    ),
    "an embedding": (
        Model(lambda m, x: x + m.table(x[:, :1, 0, 0].long())[..., None], table=nn.Embedding(4, 1)),
        {"1.table": "embedding"},
    ),
    "a bag of embeddings": (
        Model(lambda m, x: x * m.table(x[:, :2, 0, 0].long())[..., None, None],
              table=nn.EmbeddingBag(4, 1)),
        {"1.table": "embedding_bag"},
    ),
    "a product with a matrix": (
        over_places(lambda m, x: x @ m.matrix, matrix=parameter(8, 8)),
        {"1": "matmul"},
    ),
    "an einsum": (
        Model(lambda m, x: torch.einsum("bchw,cd->bdhw", x, m.matrix), matrix=parameter(8, 8)),
        {"1": "einsum"},
    ),
    "a weight that is read": (
        Model(lambda m, x: F.conv2d(x, m.conv.weight.tanh()), conv=nn.Conv2d(8, 8, 1, bias=False)),
        {"1.conv": "conv2d"},
    ),
    "a layer that is never called": (
        Model(lambda m, x: x, spare=nn.Linear(3, 3)),
        {"1.spare": "the traced run does not call it"},
    ),
}  # fmt: skip
QUANTIZED_OR_FLOAT_BY_DESIGN = {
    "layers and norms": nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)),
    "slopes": nn.PReLU(8),
    "an embedding of positions": Model(
        lambda m, x: x + m.table(torch.arange(x.shape[-1], device=x.device))[:, 0],
        table=nn.Embedding(8, 1),
    ),
    "positions": Model(lambda m, x: x + m.position, position=parameter(8, 1, 1)),
    "scales": Model(lambda m, x: x * m.scale, scale=parameter(8, 1, 1)),
    "a parametrized layer": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    "tied layers": nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)),
}


def predicted(middle: nn.Module, small) -> nn.Module:
    stem = nn.Conv2d(3, 8, 3)
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    model = nn.Sequential(stem, middle, *ends)
    return gq.predict_quantized_params(
        model, (4, 4), hypernetwork=small, example_inputs=torch.empty(2, 3, 8, 8)
    )


@pytest.mark.parametrize("kind", FLOAT)
def test_what_computes_in_float_is_named_with_the_reason(small, kind):
    middle, expected = FLOAT[kind]
    found = gq.prediction_report(predicted(middle, small)).unquantized
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name]


@pytest.mark.parametrize("kind", QUANTIZED_OR_FLOAT_BY_DESIGN)
def test_what_is_quantized_or_float_by_design_is_not_named(small, kind):
    middle = QUANTIZED_OR_FLOAT_BY_DESIGN[kind]
    if kind == "tied layers":
        middle[1].weight = middle[0].weight
    assert gq.prediction_report(predicted(middle, small)).unquantized == {}


def test_an_operation_that_nothing_accounts_for_is_an_error():
    weight = ParameterSpec("conv.weight", (4, 3, 1, 1), "weight")
    nodes = (Node("input"), Node("conv", "conv", (weight,)), Node("output"))
    graph = ComputationGraph(nodes, ((0, 1), (1, 2)))
    assert left_in_float(graph, QuantizationState(bits={"conv": (4, 4)})) == {}
    with pytest.raises(gq.GhnqatError, match=r"\['conv'\]"):
        left_in_float(graph, QuantizationState())
