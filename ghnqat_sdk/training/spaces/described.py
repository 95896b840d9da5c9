"""Architectures that are described before they are built: what they share, and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, Protocol

from torch import nn

from ghnqat_sdk.errors import ArgumentError, SpaceIndexError
from ghnqat_sdk.training.spaces.cost import Cost
from ghnqat_sdk.training.spaces.protocol import Key


class Description(Protocol):
    """The layers of a network, not yet built."""

    def build(self) -> nn.Module:
        """The network."""

    def cost(self) -> Cost:
        """Of one image."""


class Described(ABC):
    """An `Architecture` whose costs follow from its description.

    Attributes:
        space: Its space's name.
        split: The split it belongs to.
        index: Where in the split.
    """

    space: ClassVar[str]
    split: str
    index: int

    @abstractmethod
    def describe(self, num_classes: int) -> Description:
        """Its layers."""

    @property
    def key(self) -> Key:
        """See `Architecture`."""
        return (self.space, self.split, self.index)

    @property
    def macs(self) -> int:
        """See `Architecture`."""
        return self._cost.macs

    @property
    def parameter_count(self) -> int:
        """See `Architecture`."""
        return self._cost.parameters

    @property
    def depth(self) -> int:
        """See `Architecture`."""
        return self._cost.depth

    def build(self, num_classes: int = 10) -> nn.Module:
        """The network, a `BlockedModule`.

        Raises:
            ArgumentError: `num_classes` is no positive integer.
        """
        if not (is_integer(num_classes) and num_classes > 0):
            raise ArgumentError(
                f"num_classes came as {num_classes!r}; expected an integer of at least 1. Write, "
                f"for example, architecture.build(num_classes=10)."
            )
        return self.describe(num_classes).build()

    @cached_property
    def _cost(self) -> Cost:
        return self.describe(10).cost()


def check_split(split: object, known: tuple[str, ...], space: str) -> None:
    """Whether a space has such a split.

    Raises:
        ArgumentError: it has not.
    """
    if not isinstance(split, str) or split not in known:
        raise ArgumentError(
            f"split came as {split!r}; expected one of {', '.join(map(repr, known))}. Write, for "
            f"example, {space}('train')."
        )


def check_index(index: object, split: str, size: int, space: str) -> None:
    """Whether a split of so many networks has such an index.

    Raises:
        SpaceIndexError: it has not.
    """
    if not (isinstance(index, int) and is_integer(index) and 0 <= index < size):
        raise SpaceIndexError(
            f"index came as {index!r}; expected an integer from 0 to {size - 1}. Write, for "
            f"example, {space}({split!r})[0]."
        )


def is_integer(value: object) -> bool:
    """Whether `value` is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)
