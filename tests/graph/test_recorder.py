"""What flows where, however a model writes it."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functional_model import Model
from torch import Tensor, nn

import ghnqat_sdk as gq

IMAGES = torch.empty(2, 3, 16, 16)


def by_assignment(x: Tensor) -> Tensor:
    canvas = torch.zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2, device=x.device)
    canvas[:, :, 1:-1, 1:-1] = x
    return canvas[:, :, 1:-1, 1:-1]


def by_views(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    canvas[:, :4].copy_(x[:, :4])
    canvas[:, 4:].copy_(x[:, 4:])
    return canvas


def through_an_earlier_view(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    view = canvas.view(len(x), -1)
    canvas.copy_(x)
    return view.view(x.shape)


def by_data(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    canvas.data.copy_(x)
    return canvas


def by_set_data(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    canvas.data = x
    return canvas


def by_scatter(x: Tensor) -> Tensor:
    index = torch.arange(8, device=x.device).view(1, 8, 1, 1).expand(x.shape)
    return torch.zeros(x.shape, device=x.device).scatter_(1, index, x)


def by_index_copy(x: Tensor) -> Tensor:
    canvas = torch.zeros(x.shape, device=x.device)
    canvas.index_copy_(1, torch.arange(8, device=x.device), x)
    return canvas


def by_out(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    torch.mul(x, 2, out=canvas)
    return canvas


def by_foreach(x: Tensor) -> Tensor:
    canvas = torch.empty(x.shape, device=x.device)
    torch._foreach_copy_([canvas], [x])
    return canvas


WAYS = [
    by_assignment,
    by_views,
    through_an_earlier_view,
    by_data,
    by_set_data,
    by_scatter,
    by_index_copy,
    by_out,
    by_foreach,
]


def graph_of(step: Callable[[Tensor], Tensor], skip: bool) -> gq.ComputationGraph:
    def forward(m, x):
        y = m.second(step(m.first(x)))
        y = torch.cat([x, y], 1) if skip else y
        return m.head(y.relu().mean((2, 3)))

    parts = {"first": nn.Conv2d(3, 8, 3, padding=1), "second": nn.Conv2d(8, 5, 3, padding=1)}
    return gq.trace(Model(forward, head=nn.Linear(8 if skip else 5, 5), **parts), IMAGES)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("step", WAYS)
def test_what_is_assembled_in_place_is_the_graph_written_without_assignment(step, skip):
    assert graph_of(step, skip) == graph_of(torch.clone, skip)


def edges_of(forward: Callable) -> list[tuple[str, str]]:
    graph = gq.trace(Model(forward, conv=nn.Conv2d(3, 4, 3, bias=False)), IMAGES)
    return [(graph.nodes[a].op, graph.nodes[b].op) for a, b in graph.edges]


def test_activations_in_place_stand_between_what_was_before_and_after():
    def forward(m, x):
        x = F.relu(m.conv(x), inplace=True)
        flat = x.flatten(1)
        F.silu(flat, inplace=True)
        return flat.sigmoid()

    expected = ["input", "conv", "relu", "silu", "sigmoid", "output"]
    assert edges_of(forward) == list(itertools.pairwise(expected))


def test_a_part_that_is_activated_in_place_joins_the_whole():
    def forward(m, x):
        x = m.conv(x)
        x[:, :2].relu_()
        return x.sigmoid()

    assert set(edges_of(forward)) == {
        ("input", "conv"),
        ("conv", "relu"),
        ("conv", "sigmoid"),
        ("relu", "sigmoid"),
        ("sigmoid", "output"),
    }


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_operations_inside_autograd_functions_are_seen():
    edges = edges_of(lambda m, x: Swish.apply(m.conv(x)))
    assert ("conv", "sigmoid") in edges
    assert ("sigmoid", "product") in edges


def test_a_layer_with_a_weight_of_another_is_the_node_of_the_layer_that_runs():
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    graph = gq.trace(nn.Sequential(second, nn.ReLU(), first), IMAGES)
    assert [node.module for node in graph.nodes if node.op in ("conv", "classifier")] == ["0", "2"]
