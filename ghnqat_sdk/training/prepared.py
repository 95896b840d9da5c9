"""Architectures ready for predicted parameters: built on the meta device, traced, and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ghnqat_sdk.errors import ArgumentError, TraceError
from ghnqat_sdk.graph.annotate import input_layers
from ghnqat_sdk.graph.channels import Runs
from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.layers import quantizable_layers
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.plan import ForwardPlan
from ghnqat_sdk.training.sampler import Draw
from ghnqat_sdk.training.spaces.cost import IMAGE
from ghnqat_sdk.training.spaces.protocol import Architecture
from ghnqat_sdk.training.spaces.resized import Resized

KNOWN_SIZE = IMAGE.height
"""Side in pixels of the images that spaces are made for, and costs are of."""
_IMAGES = 2  # that a network is traced with


@dataclass(frozen=True)
class PreparedNetwork:
    """An architecture ready for predicted parameters.

    Attributes:
        architecture: What it is of.
        graph: Its computation graph, in float.
        plan: Runs it.
        joined: Where the channels of each of the plan's taps come from; see `Node.reads`.
        size: Side in pixels of the images that it is for.
    """

    architecture: Architecture
    graph: ComputationGraph
    plan: ForwardPlan
    joined: tuple[Runs, ...] = ()
    size: int = KNOWN_SIZE

    @property
    def takes_hints(self) -> bool:
        """Whether it is compared with a teacher: hints ruin networks without norm, and there is
        nothing to compare in one without blocks."""
        return self.plan.taps > 0 and self.architecture.norm != "none"


def prepare_network(
    architecture: Architecture, num_classes: int, size: int = KNOWN_SIZE
) -> PreparedNetwork:
    """Build, trace and plan `architecture` without allocating its parameters.

    Args:
        architecture: Of a space.
        num_classes: That it tells.
        size: Side of its images in pixels.

    Raises:
        ArgumentError: its module cannot be traced by torch.fx, or gives something else than scores
            of so many classes.
        TraceError: it cannot be run on images of this size.
    """
    model, graph, first = traced(architecture, num_classes, size)
    _check_scores(architecture, graph.outputs, (_IMAGES, num_classes))
    plan = ForwardPlan(model, first)
    names = {id(module): name for name, module in model.named_modules()}
    joined = tuple(graph.joined.get(names[id(end)], ()) for end in model.block_ends())  # type: ignore[operator]
    return PreparedNetwork(architecture, graph, plan, joined, size)


def traced(
    architecture: Architecture, num_classes: int, size: int
) -> tuple[nn.Module, ComputationGraph, set[str]]:
    """The module of `architecture` without memory for its parameters, its graph in float, and the
    layers that read its images."""
    with torch.device("meta"):
        model = architecture.build(num_classes)
        images = torch.empty(_IMAGES, 3, size, size)
    graph = trace(model, images)
    return model, graph, input_layers(graph, quantizable_layers(model))


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
        size: Side of their images in pixels, but for those that have one of their own.
    """

    def __init__(self, num_classes: int, most: int, size: int = KNOWN_SIZE) -> None:
        self.num_classes = num_classes
        self.most = most
        self.size = size
        self.kept: dict[Architecture, PreparedNetwork | None] = {}

    def of_step(self, drawn: Sequence[Draw]) -> tuple[list[Draw], list[PreparedNetwork]]:
        """What a step learns from, and its networks: all but those that are for images of other
        sizes."""
        pairs = [(draw, self.prepared(draw.architecture)) for draw in drawn]
        fit = [(draw, network) for draw, network in pairs if network is not None]
        return [draw for draw, _ in fit], [network for _, network in fit]

    def prepared(self, architecture: Architecture) -> PreparedNetwork | None:
        """The network of an architecture, None where it is for images of other sizes."""
        # Not its key, which tells networks of one space apart: two shares may have it at other
        # channels, with other settings, or one of them without norm.
        if architecture not in self.kept:
            if len(self.kept) >= self.most:
                self.kept.pop(next(iter(self.kept)))
            self.kept[architecture] = network_for(architecture, self.num_classes, self.size)
        return self.kept[architecture]


def network_for(architecture: Architecture, num_classes: int, size: int) -> PreparedNetwork | None:
    """As `prepare_network`, at the size of its own that a network may have. None where one that
    runs at the size of its space, 32 pixels, does not at this one: its classifier reads so many
    pixels, or its branches meet no more.

    Raises:
        ArgumentError, TraceError: as `prepare_network` at 32 pixels.
    """
    try:
        own = architecture.side if isinstance(architecture, Resized) else size
        return prepare_network(architecture, num_classes, own)
    except TraceError:
        prepare_network(architecture, num_classes)
        return None
