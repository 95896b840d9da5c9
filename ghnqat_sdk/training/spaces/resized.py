"""Networks that are trained on images of another size than a run's, resized to it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ghnqat_sdk.training.spaces.cost import IMAGE
from ghnqat_sdk.training.spaces.protocol import Architecture, Key, Norm, Space


@dataclass(frozen=True)
class Resized:
    """An `Architecture` that sees images of `side` pixels, and what it costs there.

    Its multiply-accumulates are taken to grow with the area, as those of convolutions do.
    """

    network: Architecture
    side: int

    @property
    def key(self) -> Key:
        return self.network.key

    @property
    def family(self) -> str:
        return self.network.family

    @property
    def norm(self) -> Norm:
        return self.network.norm

    @property
    def simple(self) -> bool:
        return self.network.simple

    @property
    def macs(self) -> int:
        return self.network.macs * self.side**2 // IMAGE.height**2

    @property
    def parameter_count(self) -> int:
        return self.network.parameter_count

    @property
    def depth(self) -> int:
        return self.network.depth

    def build(self, num_classes: int = 10) -> nn.Module:
        """The network, which is no other than at the size of its space."""
        return self.network.build(num_classes)


@dataclass(frozen=True)
class ResizedSpace:
    """A split of a space for images of `side` pixels."""

    space: Space
    side: int

    def __len__(self) -> int:
        return len(self.space)

    def __getitem__(self, index: int) -> Resized:
        return Resized(self.space[index], self.side)
