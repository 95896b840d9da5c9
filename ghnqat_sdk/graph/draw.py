"""A picture of a computation graph."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghnqat_sdk.bits import FLOAT_BITS
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import ComputationGraph, Node
from ghnqat_sdk.graph.layout import BOX, Layout, lay_out
from ghnqat_sdk.plotting import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "input, output": ("#d5d5d5", ("input", "output")),
    "convolution": ("#9ecae9", ("conv", "depthwise_conv", "grouped_conv", "transposed_conv")),
    "linear": ("#bdb0e3", ("linear", "classifier")),
    "normalization": ("#d5eab5", ("batch_norm", "group_norm", "layer_norm", "instance_norm")),
    "activation": (
        "#fde5a5",
        (
            "relu",
            "relu6",
            "hardswish",
            "silu",
            "gelu",
            "leaky_relu",
            "prelu",
            "sigmoid",
            "tanh",
            "softmax",
        ),
    ),
    "pooling": ("#8fd3c7", ("max_pool", "avg_pool", "global_pool", "adaptive_pool", "interpolate")),
    "merging": ("#f4a6a0", ("sum", "product", "concat")),
    "attention": ("#f3b7dc", ("matmul", "attention", "multi_head_attention")),
    "other": ("#ffffff", ("bias", "embedding", "other")),
}
"""Colour and operations of each family; an operation that none names is drawn as "other"."""

_FAMILY = {op: family for family, (_, ops) in FAMILIES.items() for op in ops}
_METADATA: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""Formats, and what would differ from call to call."""

_FONT, _CHARACTER = 8, 0.067  # points; inches that a character of that size takes, on average
_MARGIN, _ENTRY, _LINE = (
    0.3,
    1.3,
    0.26,
)  # inches: around everything, width and height of an entry of the legend
_DPI, _PIXELS = 150, 12_000  # a picture that would be longer gets fewer dots per inch


def draw_graph(graph: ComputationGraph, path: str | Path) -> None:
    """Write a picture of `graph`: a row for each depth, nodes coloured by family of operation
    (needs matplotlib).

    A node says its operation, kernel and stride, channels, and bits where it is quantized. Edges
    that skip rows pass beside the nodes; those of one node run together. Long graphs continue in
    columns to the right. The same graph gives the same bytes with the same version of matplotlib.

    Args:
        graph: From `trace`, with or without bits.
        path: A file that ends in .png, .svg or .pdf.

    Raises:
        ArgumentError: no graph, or one without nodes; another suffix; a file that cannot be
            written; no matplotlib.
    """
    file, kind = _checked(graph, path)
    new_figure = figure_class()
    import matplotlib

    widths = [_CHARACTER * len(node_label(node)) + 0.16 for node in graph.nodes]
    layout = lay_out(
        widths, graph.edges, [i for i, node in enumerate(graph.nodes) if node.op == "input"]
    )
    families = [
        family for family in FAMILIES if any(_family(node) == family for node in graph.nodes)
    ]
    in_line = max(1, int(layout.width / _ENTRY))
    header = _LINE * math.ceil(len(families) / in_line) + 0.2
    width, height = max(layout.width, _ENTRY) + 2 * _MARGIN, layout.height + header + 2 * _MARGIN
    picture = io.BytesIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": "ghnqat", "font.family": "DejaVu Sans", "font.size": _FONT}
    ):
        figure = new_figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(
            xlim=(-_MARGIN, width - _MARGIN), ylim=(height - header - _MARGIN, -header - _MARGIN)
        )
        axes.axis("off")
        for place, family in enumerate(families):
            x, y = _ENTRY * (place % in_line), _LINE * (place // in_line) - header
            _box(axes, family, x + 0.1, y, 0.2, 0.16)
            axes.text(x + 0.28, y, family, va="center")
        _draw(axes, graph, layout)
        figure.savefig(
            picture,
            format=kind,
            dpi=min(_DPI, _PIXELS / max(width, height)),
            metadata=_METADATA[kind],
        )
    try:
        file.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{str(path)!r} cannot be written: {error}. Write draw_graph(graph, 'graph.png')."
        ) from error


def node_label(node: Node) -> str:
    """What a node is, in one line: "conv 3×3/2 16→32 W4/A4"."""
    parts = [node.op, _window(node), _size(node)]
    if node.quantized and node.bits != (FLOAT_BITS, FLOAT_BITS):
        parts.append("W{}/A{}".format(*node.bits))
    return " ".join(part for part in parts if part)


def _window(node: Node) -> str:
    """Kernel, stride and dilation of a node that has them."""
    if node.kernel == node.stride == (1, 1) and "conv" not in node.op:
        return ""
    (down, across), text = node.stride, "×".join(map(str, node.kernel))
    if node.stride != (1, 1):
        text += f"/{down}" if down == across else f"/{down}×{across}"
    return text if node.dilation == (1, 1) else f"{text} dilated {max(node.dilation)}"


def _size(node: Node) -> str:
    """Channels that a layer reads and gives, or the shape of another parameter."""
    if not node.parameters:
        return ""
    shape = node.parameters[0].shape
    if not node.quantized or len(shape) < 2:
        return "×".join(map(str, shape))
    inputs, outputs = shape[1] * node.groups, shape[0]
    if node.op == "transposed_conv":
        inputs, outputs = shape[0], shape[1] * node.groups
    return f"{inputs}→{outputs}" + (
        f" in {node.groups} groups" if node.op == "grouped_conv" else ""
    )


def _family(node: Node) -> str:
    return _FAMILY.get(node.op, "other")


def _checked(graph: Any, path: Any) -> tuple[Path, str]:
    """The file and its format."""
    if not isinstance(graph, ComputationGraph) or not graph.nodes:
        what = (
            "has no nodes"
            if isinstance(graph, ComputationGraph)
            else f"is a {type(graph).__name__}"
        )
        raise ArgumentError(
            f"graph {what}; expected a ComputationGraph. Write draw_graph(trace(model), "
            "'graph.png')."
        )
    kind = Path(path).suffix[1:].lower() if isinstance(path, (str, Path)) else ""
    if kind not in _METADATA:
        raise ArgumentError(
            f"path={path!r} does not end in .png, .svg or .pdf. Write draw_graph(graph, "
            "'graph.png')."
        )
    return Path(path), kind


def _draw(axes: Axes, graph: ComputationGraph, layout: Layout) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    codes = {"M": Line.MOVETO, "L": Line.LINETO, "C": Line.CURVE4}
    for strokes in layout.routes.values():
        points = [point for _, through in strokes for point in through]
        line = Line(points, [codes[kind] for kind, through in strokes for _ in through])
        axes.add_patch(
            FancyArrowPatch(path=line, arrowstyle="-|>,head_width=0.18,head_length=0.45",
            mutation_scale=12,
                            color="#555555", linewidth=0.9, joinstyle="miter")
        )  # fmt: skip
    for node, (x, y, width) in zip(graph.nodes, layout.boxes, strict=True):
        _box(axes, _family(node), x, y, width)
        axes.text(x, y, node_label(node), ha="center", va="center_baseline", zorder=3)


def _box(axes: Axes, family: str, x: float, y: float, width: float, height: float = BOX) -> None:
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, f"round,pad=0,rounding_size={height / 4}"
    )
    box.set(facecolor=FAMILIES[family][0], edgecolor="#555555", linewidth=0.7, zorder=2)
    axes.add_patch(box)
