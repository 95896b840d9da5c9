import itertools
import random

import pytest
import torch

from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layout import BOX, GAP, Layout, Point, Stroke, lay_out
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families

RESIDUAL = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 4), (4, 5))
ROW = BOX + GAP


def drawn(seed: int) -> tuple[list[float], tuple[tuple[int, int], ...]]:
    """Widths and edges of some graph, the densest ones with nodes that read ten others."""
    draw, size = random.Random(seed), 60
    near = (
        sorted((u, min(size - 1, u + draw.randint(1, 12))))
        for u in range(size)
        for _ in range(1 + seed % 3)
    )
    return [draw.uniform(0.3, 2) for _ in range(size)], tuple((u, v) for u, v in near if u < v)


def of(graph: ComputationGraph) -> tuple[list[float], tuple[tuple[int, int], ...]]:
    return [0.1 * len(node.op) for node in graph.nodes], graph.edges


def points(strokes: tuple[Stroke, ...]) -> list[Point]:
    """Points along a route, close together."""
    along, here = [], strokes[0][1][0]
    for kind, through in strokes:
        control = {"M": (here, here, here), "L": (here, *through * 2), "C": through}[kind]
        for step in range(9):
            t = step / 8
            weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
            along.append(
                tuple(
                    sum(w * p[i] for w, p in zip(weights, (here, *control), strict=True))
                    for i in (0, 1)
                )
            )
        here = through[-1]
    return along


def inside(layout: Layout, index: int, point: Point) -> bool:
    x, y, width = layout.boxes[index]
    return abs(point[0] - x) < width / 2 and abs(point[1] - y) < BOX / 2


@pytest.mark.parametrize("seed", range(9))
def test_nodes_do_not_overlap_and_edges_pass_beside_them(seed):
    check(*drawn(seed))


@pytest.mark.parametrize(
    ("space", "index"), [(DeepNets("id"), 20), (Families("test"), 27)], ids=str
)
def test_nodes_and_edges_of_cnns_keep_apart(space, index):
    with torch.device("meta"):
        model = space[index].build(10)
    check(*of(trace(model)))


def check(widths, edges):
    layout = lay_out(widths, edges, [0])
    for (x, y, width), (other, below, wide) in itertools.combinations(layout.boxes, 2):
        assert abs(x - other) >= (width + wide) / 2 or abs(y - below) >= BOX
    assert all(width / 2 <= x <= layout.width - width / 2 for x, _, width in layout.boxes)
    assert all(0 < y < layout.height for _, y, _ in layout.boxes)
    for (source, target), strokes in layout.routes.items():
        others = set(range(len(widths))) - {source, target}
        assert not [(i, p) for p in points(strokes) for i in others if inside(layout, i, p)]
        x, y, _ = layout.boxes[target]
        assert strokes[-1][1][-1] == pytest.approx((x, y - BOX / 2))
        assert strokes[0][1][0] == layout.boxes[source][:2]
    assert layout.routes.keys() == {*edges}


def test_rows_are_depths_along_the_longest_path():
    layout = lay_out([1.0] * 6, RESIDUAL)
    assert [round(y / ROW - 0.5) for _, y, _ in layout.boxes] == [0, 1, 2, 3, 4, 5]
    assert len({x for x, _, _ in layout.boxes}) == 1
    assert len(layout.routes[1, 2]) < len(layout.routes[1, 4])


def test_edges_of_one_node_run_together():
    layout = lay_out([1.0] * 6, (*RESIDUAL, (1, 5)))
    assert layout.routes[1, 4][:4] == layout.routes[1, 5][:4]


def test_a_node_that_nothing_leads_to_stands_above_its_reader():
    edges = ((0, 1), (1, 2), (2, 4), (3, 4))
    rows = [round(y / ROW - 0.5) for _, y, _ in lay_out([1.0] * 5, edges, [0]).boxes]
    assert rows == [0, 1, 2, 2, 3]
    assert [round(y / ROW - 0.5) for _, y, _ in lay_out([1.0] * 5, edges, [0, 3]).boxes] == [
        0,
        1,
        2,
        0,
        3,
    ]


def test_a_long_chain_continues_in_columns():
    layout = lay_out([1.5] * 90, [(i, i + 1) for i in range(89)])
    assert len({x for x, _, _ in layout.boxes}) > 3
    assert 0.5 < layout.width / layout.height < 2


def test_columns_are_cut_where_few_edges_cross():
    blocks = [(i, i + 1) for i in range(40)] + [(i, i + 4) for i in range(0, 37, 4)]
    layout = lay_out([1.0] * 41, blocks)
    tops = [
        i for i, (_, y, _) in enumerate(layout.boxes) if y == min(y for _, y, _ in layout.boxes)
    ]
    assert len(tops) > 1
    assert all(i % 4 in (0, 1) for i in tops)


def test_one_node_is_a_picture():
    layout = lay_out([1.0], [])
    assert layout.boxes[0] == pytest.approx((layout.width / 2, layout.height / 2, 1.0))
    assert (layout.height, layout.routes) == (ROW, {})
