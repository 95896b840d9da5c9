"""The pictures of the docs, from the figures in benchmarks/results: nothing is measured.

    python benchmarks/plots.py

docs/figures/qat_start.svg shows accuracy over training steps from each start, of all networks in
qat_initialization.json but the validation ones; docs/figures/table1.svg the means of table1.json
beside the paper's, docs/figures/training.svg accuracy over the images of the stable run in LOG.md,
and docs/figures/graph.svg the graph of a small network. Colours are legible on light and on dark
pages.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import table1
import table1_page
import torch
from qat_initialization import SUMMARY
from qat_start_curves import Curves
from qat_start_tasks import BITS, MARKS, STARTS
from torch import Tensor, nn

from ghnqat_sdk import draw_graph, trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
INK = "#7a7f87"
COLOURS = {"predicted": "#d1495b", "he": "#2f7fb5", "default": "#8f7ac2", "float": "#5b9a4a"}
BARS = {
    ("GHN-Q", "paper"): "#a9b4c0",
    ("GHN-QAT", "paper"): "#5b8db8",
    ("GHN-Q", "ours"): "#e0a58f",
    ("GHN-QAT", "ours"): "#d1495b",
}
LOG = Path(__file__).with_name("LOG.md")
HISTORY = "| step | M images | deepnets W4/A4, W2/A2, float | families W4/A4, W2/A2, float |"
HISTORY_COLOURS = {"W4/A4": "#d1495b", "W2/A2": "#8f7ac2", "float": "#2f7fb5"}
RINGS: dict[str, Any] = {"marker": "o", "fillstyle": "none", "linestyle": ""}
FEWEST = 4
"""Networks in a mean that is drawn."""


def common(curves: Curves, bits: str, mark: int) -> set[str]:
    """Networks trained both from predicted parameters and from He's."""
    return {*curves.at(mark, bits, "he")} & {*curves.at(mark, bits, "predicted")}


def groups(curves: Curves, bits: str) -> list[set[str]]:
    """Networks of a line: all of them, and those of the longest runs; each has the same at every
    step."""
    sets = [nets for mark in MARKS if len(nets := common(curves, bits, mark)) >= FEWEST]
    if not sets:
        return []
    return sets[:1] if sets[0] == sets[-1] else [sets[0], sets[-1]]


def start_points(
    curves: Curves, bits: str, start: str, nets: set[str]
) -> list[tuple[int, float, float, int]]:
    """(step, mean, standard error, networks) of `nets`, where no more than a fourth are missing."""
    points = []
    for mark in MARKS:
        trained = common(curves, bits, mark)
        found = [test for net, test in curves.at(mark, bits, start).items() if net in nets]
        if nets <= trained and len(found) >= max(2, 0.75 * len(nets)):
            error = statistics.stdev(found) / len(found) ** 0.5
            points.append((mark, statistics.fmean(found), error, len(found)))
    return points


def draw_starts(curves: Curves) -> Figure:
    """Mean test accuracy by step, a panel for each of the bit-widths."""
    figure = new_figure(9, 4.2)
    for place, bits in enumerate(BITS):
        axes = new_axes(figure, 1, len(BITS), place + 1)
        for nets, dashes in zip(groups(curves, bits), ("-", ":"), strict=False):
            starts = STARTS if dashes == "-" else ("predicted", "he")
            draw_lines(axes, curves, bits, starts, nets, dashes)
        axes.set_xscale("symlog", linthresh=25)
        marks = [mark for mark in MARKS if mark <= axes.get_xlim()[1]]
        axes.set_xticks(marks, [f"{mark:,}" for mark in marks])
        axes.minorticks_off()
        axes.set_title(bits, color=INK)
        axes.set_xlabel("training steps")
        axes.set_ylabel("test accuracy, %")
    return figure


def draw_lines(
    axes: Axes, curves: Curves, bits: str, starts: Iterable[str], nets: set[str], dashes: str
) -> None:
    """One for each start."""
    for start in starts:
        points = start_points(curves, bits, start, nets)
        if points:
            steps, means, errors, counts = zip(*points, strict=True)
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}
            style |= {"color": COLOURS[start], "linestyle": dashes}
            label = f"{STARTS[start]}, {counts[-1]} networks"
            axes.errorbar(steps, means, errors, label=label, **style)


def table_bars(summary: dict[str, Any], bits: str) -> dict[tuple[str, str], list[Any]]:
    """(name, whose) to (mean, standard error) by split, None where there is no figure."""
    bars = {}
    for name, whose in BARS:
        if whose == "paper":
            cells = table1_page.PAPER.get(("top1", bits, name), ())
            row: list[Any] = [(mean, error) for mean, error, _ in cells]
        else:
            keys = [f"paper top1 {bits} {name} {split}" for split in table1_page.SPLITS]
            found = [summary["figures"].get(key) for key in keys]
            row = [(figure["mean"], figure["sem"]) if figure else None for figure in found]
        if any(row):
            bars[name, whose] = row
    return bars


def draw_table(summary: dict[str, Any]) -> Figure:
    """Mean top-1 by the paper's protocol, a panel for each of its bit-widths."""
    shown = [bits for bits in table1_page.BITS if any(key[1] == bits for key in table1_page.PAPER)]
    figure = new_figure(9, 3.2)
    first: Axes | None = None
    for place, bits in enumerate(shown):
        axes = new_axes(figure, 1, len(shown), place + 1, first)
        first = first or axes
        bars = table_bars(summary, bits)
        width = 0.8 / len(bars)
        for number, ((name, whose), row) in enumerate(bars.items()):
            offset = width * (number - (len(bars) - 1) / 2)
            cells = [(split + offset, *cell) for split, cell in enumerate(row) if cell]
            places, means, errors = zip(*cells, strict=True)
            label = f"{name}, {whose}"
            style: dict[str, Any] = {"color": BARS[name, whose], "ecolor": INK}
            axes.bar(places, means, width, yerr=errors, label=label, **style)
        axes.set_xticks(range(len(table1_page.SPLITS)), table1_page.SPLITS.values(), fontsize=8)
        axes.set_title(bits, color=INK)
        if place == 0:
            axes.set_ylabel("top-1, %")
    return figure


class Mark(NamedTuple):
    """A row of the stable run's table: accuracies by space, at W4/A4, W2/A2 and in float."""

    images: float
    decayed: bool
    deepnets: tuple[float, ...]
    families: tuple[float, ...]


def history(text: str) -> list[Mark]:
    """The rows of the stable run's table in the journal."""
    _, _, table = text.partition(HISTORY)
    marks = []
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        step, images, *spaces = [cell.strip() for cell in line.strip("|").split("|")][:4]
        deepnets, families = (tuple(map(float, cell.split(", "))) for cell in spaces)
        marks.append(Mark(float(images), "decay" in step, deepnets, families))
    return marks


def draw_history(marks: Sequence[Mark]) -> Figure:
    """Validation accuracy over images, a panel for each space; rings are decayed branches."""
    figure = new_figure(9, 3.6)
    first: Axes | None = None
    names = {"deepnets": "ConvNets-250K (re-created)", "families": "as people write them"}
    for place, (space, name) in enumerate(names.items()):
        axes = new_axes(figure, 1, len(names), place + 1, first)
        first = first or axes
        for column, (bits, colour) in enumerate(HISTORY_COLOURS.items()):
            for decayed, style in ((False, {"linewidth": 1.4}), (True, RINGS)):
                points = [
                    (mark.images, getattr(mark, space)[column])
                    for mark in marks
                    if mark.decayed is decayed
                ]
                label = f"{bits}, decayed" if decayed else bits
                axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)
        axes.set_title(name, color=INK)
        axes.set_xlabel("images, millions")
        if place == 0:
            axes.set_ylabel("validation accuracy, %")
    return figure


class Residual(nn.Module):
    """A stem, one block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, stride=2)
        self.body = nn.Sequential(conv_norm(16, 16), nn.ReLU(), conv_norm(16, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 10)."""
        x = self.stem(x).relu()
        x = (x + self.body(x)).relu()
        return self.head(x.mean((2, 3)))


def conv_norm(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def new_figure(width: float, height: float) -> Figure:
    """A transparent one, in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "ghnqat", "svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def new_axes(figure: Figure, rows: int, columns: int, place: int, like: Axes | None = None) -> Axes:
    """Transparent, in the colour of the text, with the vertical scale of `like`."""
    axes: Axes = figure.add_subplot(rows, columns, place, sharey=like)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis="y", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(side in ("left", "bottom"))
    return axes


def add_legend(figure: Figure) -> None:
    """Below, one entry for each label of any panel."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    style: dict[str, Any] = {"frameon": False, "labelcolor": INK, "fontsize": 9}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, **style)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    example = torch.empty(2, 3, 32, 32)
    draw_graph(trace(Residual(), example).with_bits((4, 4)), options.output / "graph.svg")
    curves = Curves.of_dict(json.loads(SUMMARY.read_text(encoding="utf-8")))
    summary = json.loads(table1.SUMMARY.read_text(encoding="utf-8"))
    drawn = {
        "qat_start.svg": draw_starts(curves),
        "table1.svg": draw_table(summary),
        "training.svg": draw_history(history(LOG.read_text(encoding="utf-8"))),
    }
    for name, figure in drawn.items():
        add_legend(figure)
        figure.savefig(options.output / name, transparent=True, metadata={"Date": None})
        print(options.output / name)


if __name__ == "__main__":
    main()
