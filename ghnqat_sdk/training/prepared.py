"""Architectures ready for predicted parameters: built on the meta device, traced, and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.annotate import input_layers
from ghnqat_sdk.graph.channels import Runs
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.plan import ForwardPlan
from ghnqat_sdk.training.spaces.protocol import Architecture


@dataclass(frozen=True)
class PreparedNetwork:
    """An architecture ready for predicted parameters.

    Attributes:
        architecture: What it is of.
        graph: Its computation graph, in float.
        plan: Runs it.
        joined: Where the channels of each of the plan's taps come from; see `Node.reads`.
    """

    architecture: Architecture
    graph: ComputationGraph
    plan: ForwardPlan
    joined: tuple[Runs, ...] = ()

    @property
    def takes_hints(self) -> bool:
        """Whether it is compared with a teacher: hints ruin networks without norm, and there is
        nothing to compare in one without blocks."""
        return self.plan.taps > 0 and self.architecture.norm != "none"


def prepare_network(architecture: Architecture, num_classes: int) -> PreparedNetwork:
    """Build, trace and plan `architecture` without allocating its parameters.

    Raises:
        ArgumentError: its module cannot be traced by torch.fx, or gives something else than scores
            of so many classes.
    """
    with torch.device("meta"):
        model = architecture.build(num_classes)
        image = torch.empty(2, 3, 32, 32)
    graph = trace(model, image)
    _check_scores(architecture, graph.outputs, (len(image), num_classes))
    plan = ForwardPlan(model, input_layers(graph, quantizable_layers(model)))
    names = {id(module): name for name, module in model.named_modules()}
    joined = tuple(graph.joined.get(names[id(end)], ()) for end in model.block_ends())  # type: ignore[operator]
    return PreparedNetwork(architecture, graph, plan, joined)


def _check_scores(
    architecture: Architecture, outputs: Sequence[tuple[int, ...]], expected: tuple[int, int]
) -> None:
    if tuple(outputs) != (expected,):
        images, classes = expected
        shapes = " and ".join(map(str, outputs))
        raise ArgumentError(
            f"The network {architecture.key} turns {images} images into {shapes}; expected "
            f"{expected}. Write its build(num_classes) so that it tells {classes} classes."
        )


class PreparedNetworks:
    """The networks prepared last, so that each is prepared once while it is in use.

    Args:
        num_classes: That they tell.
        most: How many are kept.
    """

    def __init__(self, num_classes: int, most: int) -> None:
        self.num_classes = num_classes
        self.most = most
        self.kept: dict[object, PreparedNetwork] = {}

    def prepared(self, architecture: Architecture) -> PreparedNetwork:
        """The network of an architecture."""
        # Two shares may have it at other channels, or one of them without norm.
        key = architecture.key, architecture.macs, architecture.norm
        if key not in self.kept:
            if len(self.kept) >= self.most:
                self.kept.pop(next(iter(self.kept)))
            self.kept[key] = prepare_network(architecture, self.num_classes)
        return self.kept[key]
