"""Which heads of a graph keep the user's values, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from ghnqat_sdk.choices import HeadChoice
from ghnqat_sdk.errors import first_few
from ghnqat_sdk.graph.graph import ComputationGraph, Head


class GraphHead(NamedTuple):
    """A head of a graph.

    Attributes:
        name: Of its module, or of its weight where it has none.
        classes: How many it tells apart.
        hypernetwork_classes: How many the hypernetwork does.
        parameters: Names, its bias included.
        tabled: Whether it is a linear layer or a 1 × 1 convolution, which a hypernetwork makes
            class by class.
        fitted: Whether `fit_head` can fit it: such a layer, for a whole image, and no more behind
            it than a bias and single numbers.
        dense: Whether it tells classes apart at each place of an image.
        alone: Whether the model has no other head.
    """

    name: str
    classes: int
    hypernetwork_classes: int
    parameters: tuple[str, ...]
    tabled: bool
    fitted: bool
    dense: bool
    alone: bool

    @property
    def unlike(self) -> bool:
        """Whether it is none that the hypernetwork was trained to make."""
        return not self.tabled or self.classes != self.hypernetwork_classes

    @property
    def reason(self) -> str:
        """Why it keeps its values where it is unlike."""
        if not self.tabled:
            return f"its head is {_OTHER}; head='predict' predicts it"
        return (
            f"its classifier has {self.classes} classes, the hypernetwork's "
            f"{self.hypernetwork_classes}; head='predict' predicts it"
        )

    @property
    def told(self) -> str:
        """It among others that keep their values."""
        return f"{self.name!r} ({f'{self.classes} classes' if self.tabled else _OTHER})"

    @property
    def advice(self) -> str:
        """What to do where it is the only one that keeps its values."""
        why = (
            f"it has {self.classes} classes, the hypernetwork {self.hypernetwork_classes}"
            if self.tabled
            else f"it is {_OTHER}, the only ones that the hypernetwork makes class by class"
        )
        return (
            f"{self.name!r} keeps its values: {why}. {self._fitting} head='predict' predicts it "
            "all the same."
        )

    @property
    def _fitting(self) -> str:
        if not self.alone:
            return "Train it: it is one of several heads."
        if self.fitted:
            return (
                "Fit it to labelled images: ghnqat_sdk.fit_head(qmodel, batches), or head='fit' "
                "with calibration=batches."
            )
        cause = (
            "the model scores each place of an image"
            if self.dense
            else "it fits linear layers and 1 × 1 convolutions whose scores are the output"
        )
        return f"Train it: fit_head cannot, since {cause}."


_OTHER = "no linear layer or 1 × 1 convolution"
_NAMED = 4


def advice_on(heads: list[GraphHead]) -> str:
    """What to do about one head or more that keep their values."""
    if len(heads) == 1:
        return heads[0].advice
    return (
        f"{first_few([head.told for head in heads], _NAMED)} keep their values: the hypernetwork "
        f"makes linear layers and 1 × 1 convolutions of {heads[0].hypernetwork_classes} classes. "
        "Train them: they are several heads. head='predict' predicts them all the same."
    )


def heads_to_keep(
    graph: ComputationGraph, num_classes: int, head: HeadChoice
) -> tuple[dict[str, str], list[GraphHead]]:
    """Parameters of heads that keep the user's values, with the reasons, and the heads that are
    unlike those of the hypernetwork: of other classes, or of another kind."""
    found = list(_heads(graph, num_classes))
    unlike = [each for each in found if each.unlike]
    if head == "predict":
        return {}, unlike
    if head == "keep":
        return {name: "head='keep'" for each in found for name in each.parameters}, unlike
    return {name: each.reason for each in unlike for name in each.parameters}, unlike


def _heads(graph: ComputationGraph, num_classes: int) -> Iterator[GraphHead]:
    owners = {p.name: node for node in graph.nodes for p in node.parameters}
    for head in graph.heads:
        weight = head.parameters[0]
        node = owners[weight]
        tabled = node.op == "classifier"
        dense = weight in graph.dense
        fitted = tabled and not dense and _scores_alone(graph, head)
        name = node.module or weight
        alone = len(graph.heads) == 1
        yield GraphHead(
            name, head.classes, num_classes, head.parameters, tabled, fitted, dense, alone
        )


def _scores_alone(graph: ComputationGraph, head: Head) -> bool:
    specs = [graph.parameters[name] for name in head.parameters]
    return all(s.role in ("weight", "bias") or math.prod(s.shape) == 1 for s in specs)
