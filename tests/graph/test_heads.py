"""Where graphs end in the scores of classes, and where they end in features."""

import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.empty(2, 3, 8, 8)
CLASSES = 7


def traced(forward, **layers) -> gq.ComputationGraph:
    """The graph of `forward`, of a module and a map of 12 features for each of 8 × 8 places."""
    body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
    return gq.trace(Model(lambda m, x: forward(m, m.body(x)), body=body, **layers), IMAGES)


def pooled(f):
    return f.mean((2, 3))


def linear(width: int = CLASSES, **options) -> nn.Module:
    return nn.Linear(12, width, **options)


def matrix(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def twice(m, f):
    m.fc(f.amax((2, 3)))
    return m.fc(pooled(f))


LINEAR = {
    "scalar scale": (lambda m, f: m.fc(pooled(f)) * m.s, {"s": matrix()}, ["s"]),
    "scale made of a number": (lambda m, f: m.fc(pooled(f)) * m.s.exp(), {"s": matrix(1)}, ["s"]),
    "shift": (lambda m, f: m.fc(pooled(f)) + m.b, {"b": matrix(CLASSES)}, ["b"]),
    "scale by class": (lambda m, f: m.fc(pooled(f)) * m.s, {"s": matrix(1, CLASSES)}, ["s"]),
    "norm": (
        lambda m, f: m.n(m.fc(pooled(f))).softmax(1),
        {"n": nn.BatchNorm1d(CLASSES)},
        ["n.weight", "n.bias"],
    ),
    "prelu": (lambda m, f: m.p(m.fc(pooled(f))), {"p": nn.PReLU()}, ["p.weight"]),
    "prelu by class": (
        lambda m, f: m.p(m.fc(pooled(f))),
        {"p": nn.PReLU(CLASSES)},
        ["p.weight"],
    ),
    "second of two calls": (twice, {}, []),
    "nothing": (lambda m, f: m.fc(pooled(f)), {}, []),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_head_is_a_classifier_with_what_stands_behind_it(name, bias):
    forward, others, behind = LINEAR[name]
    graph = traced(forward, fc=linear(bias=bias), **others)
    own = ["fc.weight", "fc.bias"] if bias else ["fc.weight"]
    (head,) = graph.heads
    assert (sorted(head.parameters[1:]), head.classes) == (sorted([*own[1:], *behind]), CLASSES)
    assert head.parameters[0] == "fc.weight"
    assert [node.module for node, _, _ in graph.classifiers()] == ["fc"]


OTHERS = {
    "whole map": (lambda m, f: m.head(f).flatten(1), nn.Conv2d(12, CLASSES, 8)),
    "kernel, then pooling": (lambda m, f: pooled(m.head(f)), nn.Conv2d(12, CLASSES, 3)),
    "groups": (lambda m, f: pooled(m.head(f)), nn.Conv2d(12, 6, 1, groups=3)),
    "matmul": (lambda m, f: pooled(f) @ m.head, matrix(12, CLASSES)),
    "matmul and shift": (lambda m, f: pooled(f) @ m.head + m.b, matrix(12, CLASSES)),
    "mm": (lambda m, f: torch.mm(pooled(f), m.head), matrix(12, CLASSES)),
    "addmm": (lambda m, f: torch.addmm(m.b, pooled(f), m.head), matrix(12, CLASSES)),
    "einsum": (lambda m, f: torch.einsum("nd,kd->nk", pooled(f), m.head), matrix(CLASSES, 12)),
}


def test_a_pointwise_convolution_with_a_scale_behind_it_is_a_classifier():
    c = nn.Conv2d(12, CLASSES, 1, bias=False)
    graph = traced(lambda m, f: pooled(m.c(f) * m.s + m.b), c=c, s=matrix(1), b=matrix(7, 1, 1))
    assert set(graph.heads[0].parameters) == {"c.weight", "s", "b"}
    assert [node.module for node, _, _ in graph.classifiers()] == ["c"]


@pytest.mark.parametrize("name", OTHERS)
def test_heads_of_other_kinds_are_known_and_are_no_classifiers(name):
    forward, member = OTHERS[name]
    graph = traced(forward, head=member, b=matrix(CLASSES))
    (head,) = graph.heads
    expected = {n for n, _ in Model(None, head=member).named_parameters()}
    assert set(head.parameters) - {"b"} == expected
    assert ("b" in head.parameters) == (name in ("matmul and shift", "addmm"))
    assert head.classes == (6 if "groups" in name else CLASSES)
    assert list(graph.classifiers()) == []


FEATURES = {
    "map": (lambda m, f: f, {}),
    "pooled": (lambda m, f: pooled(f), {}),
    "convolution, then ReLU": (lambda m, f: pooled(m.c(f).relu()), {"c": nn.Conv2d(12, 5, 3)}),
    "depthwise": (lambda m, f: pooled(m.c(f)), {"c": nn.Conv2d(12, 12, 3, groups=12)}),
    "map of a large kernel": (lambda m, f: m.c(f), {"c": nn.Conv2d(12, 5, 3)}),
    "norm, then ReLU": (lambda m, f: m.n(m.fc(pooled(f))).relu(), {"n": nn.BatchNorm1d(CLASSES)}),
    "1 × 1, norm, then ReLU": (
        lambda m, f: pooled(m.n(m.c(f)).relu()),
        {"c": nn.Conv2d(12, 5, 1), "n": nn.BatchNorm2d(5)},
    ),
    "norm after ReLU": (lambda m, f: m.n(m.fc(pooled(f)).relu()), {"n": nn.LayerNorm(CLASSES)}),
    "scale after ReLU": (
        lambda m, f: pooled(m.c(f).relu() * m.s),
        {"c": nn.Conv2d(12, 5, 1), "s": matrix(1)},
    ),
    "convolution, then norm": (
        lambda m, f: pooled(m.n(m.c(f))),
        {"c": nn.Conv2d(12, 5, 3), "n": nn.BatchNorm2d(5)},
    ),
    "residual before a norm": (
        lambda m, f: m.n(m.c(pooled(f)) + pooled(f)),
        {"c": nn.Linear(12, 12), "n": nn.LayerNorm(12)},
    ),
    "residual after a scale": (
        lambda m, f: m.c(pooled(f)) * m.s + pooled(f),
        {"c": nn.Linear(12, 12), "s": matrix(12)},
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_features_are_no_head(name):
    forward, layers = FEATURES[name]
    assert traced(forward, fc=linear(), **layers).heads == ()


def test_each_output_has_its_head():
    def forward(m, f):
        return {"a": m.fc(pooled(f)) * m.s, "b": m.aux(f).flatten(1), "features": f}

    graph = traced(forward, fc=linear(), s=matrix(1), aux=nn.Conv2d(12, 4, 8, bias=False))
    assert [head.parameters for head in graph.heads] == [
        ("fc.weight", "fc.bias", "s"),
        ("aux.weight",),
    ]


def test_scores_of_places_are_a_head_as_far_as_a_table_can_make_them():
    graph = traced(lambda m, f: m.c(f), c=nn.Conv2d(12, 5, 1))
    assert graph.heads[0].parameters == ("c.weight", "c.bias")
    assert graph.dense == ("c.weight",)


def test_a_layer_whose_weight_is_computed_from_a_second_input_ends_no_search_in_a_circle():
    class Scaled(nn.Linear):
        def forward(self, x, factor):
            return nn.functional.linear(x, self.weight * factor, self.bias)

    graph = gq.trace(Scaled(12, CLASSES), (torch.empty(2, 12), torch.empty(())))
    assert [node.op for node in graph.nodes[2:]] == ["product", "linear", "bias", "output"]
    assert graph.parameters.keys() == {"weight", "bias"}
