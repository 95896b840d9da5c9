"""Architectures ready for predicted parameters: built on the meta device, traced, and planned."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ghnqat_sdk.graph.graph import ComputationGraph
from ghnqat_sdk.graph.trace import trace
from ghnqat_sdk.training.plan import Plan
from ghnqat_sdk.training.spaces.protocol import Architecture


@dataclass(frozen=True)
class Network:
    """An architecture ready for predicted parameters.

    Attributes:
        architecture: What it is of.
        graph: Its computation graph, in float.
        plan: Runs it.
    """

    architecture: Architecture
    graph: ComputationGraph
    plan: Plan


def prepare_network(architecture: Architecture, num_classes: int) -> Network:
    """Build, trace and plan `architecture` without allocating its parameters.

    Raises:
        ArgumentError: its module cannot be traced by torch.fx.
    """
    with torch.device("meta"):
        model = architecture.build(num_classes)
        image = torch.empty(2, 3, 32, 32)
    return Network(architecture, trace(model, image), Plan(model))
