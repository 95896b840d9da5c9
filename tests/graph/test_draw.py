import builtins
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.image import imread
from matplotlib.textpath import TextPath
from torch import nn

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph import draw
from ghnqat_sdk.graph.draw import FAMILIES, draw_graph, node_label
from ghnqat_sdk.graph.graph import ComputationGraph, Node, ParameterSpec
from ghnqat_sdk.graph.layout import lay_out
from ghnqat_sdk.graph.ops import VOCABULARY


def weight(*shape: int) -> tuple[ParameterSpec, ...]:
    return (ParameterSpec("weight", shape, "weight"),)


def test_families_name_every_operation_once():
    assert sorted(op for _, ops in FAMILIES.values() for op in ops) == sorted(VOCABULARY)


@pytest.mark.parametrize(
    ("node", "label"),
    [
        (Node("relu"), "relu"),
        (Node("relu", bits=(4, 4)), "relu"),
        (
            Node("conv", parameters=weight(16, 3, 3, 3), kernel=(3, 3), bits=(4, 8)),
            "conv 3×3 3→16 W4/A8",
        ),
        (Node("conv", parameters=weight(8, 3, 1, 1), stride=(2, 2)), "conv 1×1/2 3→8"),
        (
            Node("conv", parameters=weight(8, 4, 1, 7), kernel=(1, 7), stride=(1, 2)),
            "conv 1×7/1×2 4→8",
        ),
        (
            Node("conv", parameters=weight(8, 4, 3, 3), kernel=(3, 3), dilation=(2, 2)),
            "conv 3×3 dilated 2 4→8",
        ),
        (
            Node("depthwise_conv", parameters=weight(12, 1, 5, 5), kernel=(5, 5), groups=12),
            "depthwise_conv 5×5 12→12",
        ),
        (
            Node("grouped_conv", parameters=weight(8, 2, 3, 3), kernel=(3, 3), groups=4),
            "grouped_conv 3×3 8→8 in 4 groups",
        ),
        (
            Node("transposed_conv", parameters=weight(6, 9, 2, 2), kernel=(2, 2)),
            "transposed_conv 2×2 6→9",
        ),
        (Node("conv"), "conv 1×1"),
        (Node("classifier", parameters=weight(10, 64), bits=(32, 8)), "classifier 64→10 W32/A8"),
        (Node("batch_norm", parameters=weight(64)), "batch_norm 64"),
        (Node("max_pool", kernel=(3, 3), stride=(2, 2)), "max_pool 3×3/2"),
        (Node("embedding", parameters=weight(100, 16)), "embedding 100×16"),
    ],
)
def test_a_label_says_operation_kernel_channels_and_bits(node, label):
    assert node_label(node) == label


def test_labels_fit_into_their_boxes(diamond, tmp_path, monkeypatch):
    widest = Node(
        "transposed_conv", "m", weight(1024, 1024, 7, 7), (7, 7), (2, 2), (2, 2), bits=(32, 8)
    )
    graph = ComputationGraph(
        (*diamond.with_bits((4, 4)).nodes, widest, *(Node(op) for op in VOCABULARY)), ()
    )
    given = []
    monkeypatch.setattr(
        draw, "lay_out", lambda widths, *rest: given.extend(widths) or lay_out(widths, *rest)
    )
    draw_graph(graph, tmp_path / "graph.svg")
    for node, width in zip(graph.nodes, given, strict=True):
        outline = TextPath(
            (0, 0), node_label(node), size=8, prop=FontProperties(family="DejaVu Sans")
        )
        assert 0.05 < width - outline.get_extents().width / 72 < 0.7


def texts(path) -> list[str]:
    """What an SVG says: matplotlib writes each text as a comment before its outlines."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return [
        e.text.strip()
        for e in ElementTree.parse(path, parser).iter()
        if e.tag is ElementTree.Comment
    ]


def test_every_node_and_family_is_in_the_picture(diamond, tmp_path):
    draw_graph(diamond.with_bits((4, 2)), tmp_path / "graph.svg")
    labels = [
        "input",
        "conv 3×3 3→12 W4/A2",
        "relu",
        "conv 1×1 12→12 W4/A2",
        "sum",
        "classifier 12→10 W4/A2",
        "output",
    ]
    legend = ["input, output", "convolution", "linear", "activation", "merging"]
    assert sorted(texts(tmp_path / "graph.svg")) == sorted(labels + legend)


def test_edges_are_arrows(diamond, tmp_path):
    draw_graph(diamond, tmp_path / "with.svg")
    draw_graph(ComputationGraph(diamond.nodes, diamond.edges[:-1]), tmp_path / "without.svg")
    counts = [(tmp_path / name).read_text().count("<path") for name in ("with.svg", "without.svg")]
    assert counts[0] == counts[1] + 2  # a line and its head


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_graph_gives_the_same_bytes(diamond, tmp_path, kind):
    for name in ("first", "second"):
        draw_graph(diamond, str(tmp_path / f"{name}.{kind}"))
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("first", "second"))
    assert first == second
    assert first[:4] == {"png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF"}[kind]
    draw_graph(diamond.with_bits((4, 4)), tmp_path / f"second.{kind}")
    assert (tmp_path / f"second.{kind}").read_bytes() != first


def test_nodes_have_the_colour_of_their_family(diamond, tmp_path):
    draw_graph(diamond, tmp_path / "graph.PNG")
    shown = {
        tuple(colour)
        for colour in (imread(tmp_path / "graph.PNG")[..., :3].reshape(-1, 3) * 255)
        .round()
        .astype(int)
    }
    colours = {family: tuple(bytes.fromhex(colour[1:])) for family, (colour, _) in FAMILIES.items()}
    used = {
        "input, output",
        "convolution",
        "linear",
        "activation",
        "merging",
        "other",
    }  # the last is white
    assert {family for family, colour in colours.items() if colour in shown} == used


def test_an_operation_of_no_family_is_drawn_as_other(tmp_path, monkeypatch):
    monkeypatch.delitem(draw._FAMILY, "relu")
    draw_graph(ComputationGraph((Node("relu"),), ()), tmp_path / "graph.svg")
    assert texts(tmp_path / "graph.svg") == ["other", "relu"]


def test_a_large_graph_grows_the_picture_and_stays_within_limits(tmp_path):
    sizes = []
    for depth in (10, 300):
        nodes = tuple(Node("relu") for _ in range(depth))
        graph = ComputationGraph(nodes, tuple((i, i + 1) for i in range(depth - 1)))
        draw_graph(graph, tmp_path / "graph.png")
        sizes.append(imread(tmp_path / "graph.png").shape)
    assert 10 * sizes[0][0] * sizes[0][1] < sizes[1][0] * sizes[1][1]
    assert max(sizes[1]) < 2**16


@pytest.mark.parametrize("path", ["graph", "graph.gif", "", None, 7, b"graph.png"])
def test_other_suffixes_are_refused(diamond, path):
    with pytest.raises(ArgumentError, match=r"does not end in \.png"):
        draw_graph(diamond, path)


@pytest.mark.parametrize("path", ["nowhere/graph.png", "folder.svg", "a\0b.png"])
def test_a_file_that_cannot_be_written_is_refused(diamond, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ArgumentError, match="cannot be written"):
        draw_graph(diamond, path)


@pytest.mark.parametrize(
    ("graph", "what"), [(ComputationGraph((), ()), "has no nodes"), (nn.ReLU(), "is a ReLU")]
)
def test_what_is_no_graph_with_nodes_is_refused(tmp_path, graph, what):
    with pytest.raises(ArgumentError, match=what):
        draw_graph(graph, tmp_path / "graph.png")


def test_without_matplotlib_the_extra_is_named(diamond, tmp_path, monkeypatch):
    import_module = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return import_module(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ArgumentError, match=r'pip install "ghnqat-sdk\[plot\]"'):
        draw_graph(diamond, tmp_path / "graph.png")


def test_settings_of_matplotlib_stay_as_they_were(diamond, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_graph(diamond, tmp_path / "graph.svg")
    assert dict(matplotlib.rcParams) == before
