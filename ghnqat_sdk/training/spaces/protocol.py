"""What a space of networks is to the rest of training: architectures made again anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from torch import Tensor, nn

Norm = Literal["batch", "group", "layer", "none"]
Key: TypeAlias = tuple[str, str, int]
"""(space, split, index)."""


class BlockedModule(Protocol):
    """An `nn.Module` that says where its blocks end."""

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images to (N, classes) scores."""

    def block_ends(self) -> Sequence[nn.Module]:
        """The modules whose outputs (N, C, h, w) end a block, as executed: what hints tap."""


class Architecture(Protocol):
    """One network of a space, described and not yet built.

    Costs are of one 3x32x32 image and ten classes, worked out from the description: nothing is
    built for them.
    """

    @property
    def key(self) -> Key:
        """(space, split, index): remakes the same network in any process, on any machine."""

    @property
    def family(self) -> str:
        """Which kind of network it is, for figures by family."""

    @property
    def norm(self) -> Norm:
        """Its normalization layers."""

    @property
    def simple(self) -> bool:
        """Whether it is among those that an untrained hypernetwork learns first."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions and linear layers."""

    @property
    def parameter_count(self) -> int:
        """Numbers in its parameters."""

    @property
    def depth(self) -> int:
        """Convolutions and linear layers on the longest path."""

    def build(self, num_classes: int = 10) -> nn.Module:
        """The network, a `BlockedModule`.

        Under `torch.device("meta")` it takes neither memory nor time.
        """


class Space(Protocol):
    """One split of a space of networks."""

    def __getitem__(self, index: int) -> Architecture:
        """The architecture at `index`, made from (split, index) alone.

        Raises:
            IndexError: there is none, so that a loop over the space ends.
        """

    def __len__(self) -> int:
        """Number of architectures."""
