"""What a network costs, worked out from its description while shapes flow through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Flow(NamedTuple):
    """Shape of one image's activations, and how many layers with weights lie behind it."""

    channels: int
    height: int
    width: int
    depth: int = 0


IMAGE = Flow(3, 32, 32)
"""What every network of the spaces reads."""


@dataclass
class Cost:
    """Collected while a description is traced.

    Attributes:
        macs: Multiply-accumulates of convolutions and linear layers for one image.
        parameters: Numbers in all parameters.
        depth: Convolutions and linear layers on the longest path.
    """

    macs: int = 0
    parameters: int = 0
    depth: int = 0
