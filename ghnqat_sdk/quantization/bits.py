"""What a user may write for `bits`, and what it means."""

from __future__ import annotations

from typing import Any

from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.graph.graph import FLOAT_BITS

Bits = tuple[int, int]
"""(weight, activation) bit-widths; 32 is float."""

SUPPORTED_BITS = (*range(2, 9), FLOAT_BITS)


def parse_bits(bits: Any) -> Bits:
    """Check a (weight, activation) pair, each 2 to 8, or 32 for float.

    Raises:
        ArgumentError: anything else.

    Examples:
        >>> parse_bits((4, 8))
        (4, 8)
    """
    valid = isinstance(bits, (tuple, list)) and len(bits) == 2
    if not valid or any(type(b) is not int or b not in SUPPORTED_BITS for b in bits):
        raise ArgumentError(
            f"bits={bits!r} is not a (weight, activation) pair of bit-widths. Each is a whole number from 2 to 8, or "
            f"32 for float. Write, for example, bits=(4, 4) or bits=(2, 32)."
        )
    return bits[0], bits[1]


def parse_bits_text(text: str) -> Bits:
    """The pair that a command line gives as "4,4"."""
    try:
        return parse_bits(tuple(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ArgumentError(
            f"--bits {text!r} is not WEIGHT,ACTIVATION with each from 2 to 8, or 32 for float. Write, for example, "
            f"--bits 4,4"
        ) from error
