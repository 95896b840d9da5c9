"""Which networks a run is trained on: the shares of spaces, each with its limits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ghnqat_sdk.configs import Limit, Part
from ghnqat_sdk.plugins import ImportedCustom
from ghnqat_sdk.training.spaces.custom import CustomSpace
from ghnqat_sdk.training.spaces.deepnets import DeepNets
from ghnqat_sdk.training.spaces.families import Families
from ghnqat_sdk.training.spaces.protocol import Architecture, Norm, Space
from ghnqat_sdk.training.spaces.resized import ResizedSpace


class _Share(Part):
    """How often networks of a space are drawn, and which."""

    share: float = Field(default=1.0, ge=0)
    """Relative frequency."""
    min_macs: float = Field(default=0.0, ge=0)
    max_macs: Limit = 40e6
    """Networks that cost fewer or more multiply-accumulates for one image are passed over."""
    max_parameters: Limit = 25e6
    norm: Norm | None = None
    """Only networks with this normalization."""
    size: int | None = Field(default=None, ge=16, le=256)
    """Side in pixels that images are resized to for these networks, which cost accordingly; None
    for images as they are."""

    @model_validator(mode="after")
    def _some_cost(self) -> _Share:
        if self.min_macs > self.max_macs:
            raise ValueError(
                f"min_macs, {self.min_macs:g}, is above max_macs, {self.max_macs:g}; lower the "
                f"first, or raise the second"
            )
        return self

    def takes(self, architecture: Architecture) -> bool:
        """Whether a network meets the limits."""
        within = self.min_macs <= architecture.macs <= self.max_macs
        small = architecture.parameter_count <= self.max_parameters
        return within and small and self.norm in (None, architecture.norm)

    def sized(self, space: Space) -> Space:
        """A space of theirs for images of their size."""
        return space if self.size is None else ResizedSpace(space, self.size)


class _ShippedShare(_Share):
    """Networks of a space that comes with the package."""

    space: str

    @property
    def source(self) -> str:
        """Where the networks come from."""
        return self.space

    @property
    def origin(self) -> object:
        """What shares of the same networks have in common, limits aside."""
        return self.space


class DeepNetsShare(_ShippedShare):
    """Networks of ConvNets-250K (re-created)."""

    space: Literal["deepnets"] = "deepnets"
    channels: int | None = Field(default=None, ge=8)
    """Of the first cells, instead of 16 to 48."""
    bare: bool = False
    """All of them without norm, instead of few and short ones."""
    deep: bool = False
    """Of 10 to 36 cells instead of 4 to 18."""

    def build(self, split: str) -> Space:
        """The split of the space."""
        return DeepNets(f"deep-{split}" if self.deep else split, self.channels, self.bare)


class FamiliesShare(_ShippedShare):
    """Networks as people write them."""

    space: Literal["families"] = "families"

    def build(self, split: str) -> Space:
        """The split of the space."""
        return Families(split)


class CustomShare(ImportedCustom, _Share):
    """Networks of a user's own space: `factory(split, **settings)`, for "train" and "val"."""

    space: Literal["custom"] = "custom"
    expected: ClassVar[str] = (
        "A space is made by factory(split, **settings), for 'train' and for 'val'; it has a "
        "length, and an architecture at each index below: see docs/extending_training.md."
    )

    @property
    def source(self) -> str:
        """Where the networks come from."""
        return self.factory

    @property
    def origin(self) -> object:
        """What shares of the same networks have in common, limits aside."""
        return self.factory, repr(self.settings)

    def build(self, split: str) -> Space:
        """The split of the space.

        Raises:
            ArgumentError: it cannot be made, or is empty.
        """
        return CustomSpace(self, split)


SpaceShare = Annotated[DeepNetsShare | FamiliesShare | CustomShare, Field(discriminator="space")]
