"""The picture of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ghnqat_sdk.demo.comparison import Comparison, Score
from ghnqat_sdk.plotting import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"predicted": "tab:blue", "random": "tab:gray"}


def plot_starts(comparison: Comparison, title: str, path: str | Path) -> None:
    """Draw the accuracy of both starts, with its 95 % interval, and the images of each class that
    they name rightly.

    Raises:
        ArgumentError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = figure_class()(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, width_ratios=(2, 5))
    starts = {"predicted": comparison.predicted, "random": comparison.random}
    _draw_accuracies(left, starts)
    _draw_classes(right, starts, comparison.classes)
    figure.savefig(str(path))


def _draw_accuracies(axes: Axes, starts: dict[str, Score]) -> None:
    for place, (name, score) in enumerate(starts.items()):
        low, high = score.interval
        reach = [[score.accuracy - low], [high - score.accuracy]]
        axes.bar(place, score.accuracy, color=_COLOURS[name], yerr=reach, capsize=4)
        axes.text(place, high + 1, f"{score.accuracy:.1f} %", ha="center", va="bottom")
    axes.set_xticks(range(len(starts)), list(starts))
    axes.set_ylim(0, 100)
    count = sum(starts["predicted"].images)
    axes.set_ylabel(f"right of {count} test images, %")


def _draw_classes(axes: Axes, starts: dict[str, Score], classes: tuple[str, ...]) -> None:
    width = 0.4
    for offset, (name, score) in zip((-width / 2, width / 2), starts.items(), strict=True):
        places = [place + offset for place in range(len(classes))]
        axes.bar(places, score.correct, width, color=_COLOURS[name], label=f"{name} start")
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    most = max(starts["predicted"].images)
    axes.set_ylim(0, most)
    axes.set_yticks(range(0, most + 1, 5))
    axes.set_ylabel("right images of each class")
    axes.legend()
