"""Which classifiers of a graph keep the user's values, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ghnqat_sdk.choices import Head
from ghnqat_sdk.graph.graph import ComputationGraph


class GraphClassifier(NamedTuple):
    """A classifier of a graph.

    Attributes:
        name: Of its module, or of its weight where it has none.
        classes: How many it tells apart.
        hypernetwork_classes: How many the hypernetwork does.
        parameters: Names, its bias included.
        dense: Whether it tells them apart at each place of an image.
    """

    name: str
    classes: int
    hypernetwork_classes: int
    parameters: tuple[str, ...]
    dense: bool

    @property
    def reason(self) -> str:
        """Why it keeps its values where both numbers differ."""
        return (
            f"its classifier has {self.classes} classes, the hypernetwork's "
            f"{self.hypernetwork_classes}; head='predict' predicts it"
        )

    @property
    def advice(self) -> str:
        """What to do about that."""
        fitting = (
            "Train it: fit_head cannot, since the model scores each place of an image."
            if self.dense
            else "Fit it to labelled images: ghnqat_sdk.fit_head(qmodel, batches), or head='fit' "
            "with calibration=batches."
        )
        return (
            f"{self.name!r} keeps its values: it has {self.classes} classes, the hypernetwork "
            f"{self.hypernetwork_classes}. {fitting} head='predict' predicts it all the same."
        )


def heads_to_keep(
    graph: ComputationGraph, num_classes: int, head: Head
) -> tuple[dict[str, str], list[GraphClassifier]]:
    """Parameters of classifiers that keep the user's values, with the reasons, and the classifiers
    that have other classes than the hypernetwork."""
    found = list(_classifiers(graph, num_classes))
    mismatched = [each for each in found if each.classes != num_classes]
    if head == "predict":
        return {}, mismatched
    if head == "keep":
        return {name: "head='keep'" for each in found for name in each.parameters}, mismatched
    return {name: each.reason for each in mismatched for name in each.parameters}, mismatched


def _classifiers(graph: ComputationGraph, num_classes: int) -> Iterator[GraphClassifier]:
    for node, biases, _ in graph.classifiers():
        parts = (node, *(graph.nodes[bias] for bias in biases))
        names = tuple(parameter.name for part in parts for parameter in part.parameters)
        weight = node.parameters[0]
        dense = weight.name in graph.dense
        yield GraphClassifier(node.module or names[0], weight.shape[0], num_classes, names, dense)
