"""What all parts of all configs have in common: what is written is read back as it was."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

P = TypeVar("P", bound="Part")

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
"""Of each channel, where white is 1: what images are taken to have where nothing else is said."""

Limit = Annotated[float, Field(gt=0, allow_inf_nan=True)]
"""What something may be at most; an infinite one is no limit."""

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Of random numbers: what torch's generators take."""


class Part(BaseModel):
    """A part of a config: complete, unchanging, and refused where a field is unknown.

    Numbers are finite, but for limits. JSON has no infinite one: it is written as "Infinity", which
    is a number again when it is read.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="strings"
    )

    @model_validator(mode="wrap")
    @classmethod
    def _no_switch_for_a_number(
        cls: type[P], given: Any, validate: ModelWrapValidatorHandler[P]
    ) -> P:
        made = validate(given)
        read = given if isinstance(given, dict) else {}
        for name, value in vars(made).items():
            if _became_a_number(read.get(name), value):
                raise ValueError(f"{name} is a number, and cannot be true or false")
        return made


def _became_a_number(given: Any, validated: Any) -> bool:
    """Whether true or false was taken for 1 or 0, as pydantic does, here or in a row of numbers."""
    if isinstance(given, bool):
        return not isinstance(validated, bool)
    if isinstance(given, list | tuple) and isinstance(validated, tuple):
        return any(map(_became_a_number, given, validated))
    return False
