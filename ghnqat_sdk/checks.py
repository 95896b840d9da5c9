"""What numbers are: true and false are none."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeGuard

from ghnqat_sdk.errors import ArgumentError


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number, one of numpy as well."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number, one of numpy as well."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, instead: str) -> int:
    """A whole number from `least`.

    Raises:
        ArgumentError: the argument `name` is none.
    """
    if not is_whole(value) or value < least:
        raise ArgumentError(f"{name}={value!r} is no whole number from {least}. Write {instead}.")
    return int(value)
