"""A space of a user's own: whatever it lacks or raises becomes an error that names it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict
from torch import nn

from ghnqat_sdk.plugins import ImportedCustom
from ghnqat_sdk.training.spaces.described import check_index
from ghnqat_sdk.training.spaces.protocol import Key, Norm

_Count = Annotated[int, Field(ge=0)]


class CustomArchitecture(BaseModel):
    """An `Architecture` with the facts that a user's own tells, and the module that it builds."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
    key: Annotated[Key, Strict()]
    family: str
    norm: Norm
    simple: bool
    macs: _Count
    parameter_count: _Count
    depth: _Count
    _own: Any = PrivateAttr()
    _custom: ImportedCustom = PrivateAttr()

    @classmethod
    def of(cls, own: Any, custom: ImportedCustom) -> CustomArchitecture:
        """That of the user's `own`, from the space that `custom` names."""
        found = cls.model_validate(own)
        found._own, found._custom = own, custom
        return found

    def __eq__(self, other: object) -> bool:
        """Whether it is the same network of the same space, whatever object of the user's tells of
        it."""
        same = isinstance(other, CustomArchitecture) and self._custom == other._custom
        return same and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.key)

    def build(self, num_classes: int = 10) -> nn.Module:
        """The network, a `BlockedModule`.

        Raises:
            ArgumentError: it cannot be built, or does not say where blocks of its own end.
        """
        where = f"gives {self.key}, whose"
        with self._custom.running(f"{where} build({num_classes}) fails"):
            model = self._own.build(num_classes)
        if not isinstance(model, nn.Module):
            raise self._custom.refusal(f"{where} build gives a {type(model).__name__}, no module")
        with self._custom.running(f"{where} module does not say where its blocks end"):
            ends = set(model.block_ends())  # type: ignore[operator]
        if not ends <= set(model.modules()):
            raise self._custom.refusal(f"{where} block_ends() are not all modules inside it")
        return model


class CustomSpace:
    """One split of a user's own `Space`.

    Args:
        custom: Names it.
        split: "train" or "val".

    Raises:
        ArgumentError: it cannot be made, or is empty.
    """

    def __init__(self, custom: ImportedCustom, split: str) -> None:
        self.custom = custom
        self.split = split
        self.own = custom.call(split)
        with custom.running("has no length"):
            self.size = len(self.own)
        if not self.size:
            raise custom.refusal(f"is empty for the split {split!r}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> CustomArchitecture:
        check_index(index, self.split, self.size, self.custom.factory)
        with self.custom.running(f"gives no architecture at {index} of {self.split!r}"):
            return CustomArchitecture.of(self.own[index], self.custom)
