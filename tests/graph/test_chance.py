"""Layers that a model drops by chance in training are in its graph, and those of one mode alone."""

import random

import numpy as np
import pytest
import torch
from functional_model import Model
from torch import nn

import ghnqat_sdk as gq

IMAGES = torch.empty(2, 3, 8, 8)
OWN = np.random.default_rng(0)
CHANCES = {
    "python": random.random,
    "numpy": np.random.rand,
    "torch": lambda: torch.rand(1, device="cpu").item(),
    "own": OWN.random,
}


def body(m, x, chance):
    x = m.stem(x)
    for block in m.blocks:
        if not m.training or chance() < 0.5:
            x = x + block(x)
    return x


def blocks(**more) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    convolutions = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
    return {"stem": nn.Conv2d(3, 8, 3), "blocks": convolutions, "head": nn.Linear(8, 10), **more}


def dropping(chance) -> nn.Module:
    return Model(lambda m, x: m.head(body(m, x, chance).mean((2, 3))), **blocks())


def with_two_heads(chance) -> nn.Module:
    def forward(m, x):
        y = body(m, x, chance)
        scores = m.head(y.mean((2, 3)))
        return (scores, m.more(m.stem(x).relu().mean((2, 3)))) if m.training else scores

    return Model(forward, **blocks(more=nn.Linear(8, 10)))


def names_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", CHANCES)
def test_the_graph_is_that_of_evaluation_whatever_the_generators_would_give(kind):
    model = dropping(CHANCES[kind])
    never = gq.trace(dropping(lambda: 0.0), IMAGES)
    for seed in range(3):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        assert gq.trace(model, IMAGES) == never
    assert set(never.parameters) == names_of(model)


@pytest.mark.parametrize("kind", CHANCES)
def test_blocks_that_are_dropped_by_chance_are_predicted_and_calibrated(small, kind):
    model = dropping(CHANCES[kind])
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    assert gq.prediction_report(qmodel).kept == {}
    assert gq.calibrate(qmodel, [torch.randn(64, 3, 8, 8)]).unreached == ()


@pytest.mark.parametrize("kind", CHANCES)
def test_heads_of_training_alone_are_added_beside_them(kind):
    model = with_two_heads(CHANCES[kind])
    graph = gq.trace(model, IMAGES)
    assert set(graph.parameters) == names_of(model)
    assert graph.unreached == {}
    assert all(source < target for source, target in graph.edges)
    at = {node.parameters[0].name: i for i, node in enumerate(graph.nodes) if node.parameters}
    assert graph.nodes[at["more.weight"]].op == graph.nodes[at["head.weight"]].op == "classifier"
    assert (at["more.bias"], len(graph) - 1) in graph.edges
    before = {target: source for source, target in graph.edges}
    chain = [before[at["more.weight"]]]
    while graph.nodes[chain[-1]].op != "input":
        chain.append(before[chain[-1]])
    found = [graph.nodes[index].op for index in chain]
    assert found == ["global_pool", "relu", "conv", "input"]  # whose bias is told once


def test_layers_of_each_mode_are_in_one_graph():
    def forward(m, x):
        features = m.stem(x).relu().mean((2, 3))
        return m.trained(features) if m.training else m.evaluated(features)

    heads = {"trained": nn.Linear(8, 10), "evaluated": nn.Linear(8, 10)}
    graph = gq.trace(Model(forward, stem=nn.Conv2d(3, 8, 3), **heads), IMAGES)
    assert graph.unreached == {}
    ends = [source for source, target in graph.edges if target == len(graph) - 1]
    assert [graph.nodes[end].module for end in ends] == ["evaluated", "trained"]


def test_blocks_that_no_run_reaches_are_reported(small):
    def forward(m, x):
        if not m.training:
            raise RuntimeError("trains only")
        return m.head(body(m, x, lambda: 1.0).mean((2, 3)))

    model = Model(forward, **blocks())
    qmodel = gq.predict_quantized_params(model, hypernetwork=small, example_inputs=IMAGES)
    report = gq.prediction_report(qmodel)
    expected = {f"blocks.{i}.{what}" for i in range(4) for what in ("weight", "bias")}
    assert report.kept == dict.fromkeys(expected, "not used by the forward pass")
    assert set(report.unquantized) == {f"blocks.{i}" for i in range(4)}


def test_one_run_is_enough_where_every_layer_is_met():
    calls = []

    def forward(m, x):
        calls.append(m.training)
        return m.head(nn.functional.dropout(m.stem(x), 0.5, m.training).mean((2, 3)))

    gq.trace(Model(forward, stem=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 10)), IMAGES)
    assert calls == [True]
