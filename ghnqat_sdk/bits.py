"""What a user may write for `bits`, and what it means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ghnqat_sdk.checks import is_whole
from ghnqat_sdk.errors import ArgumentError

FLOAT_BITS = 32
"""The bit-width that stands for "not quantized"."""

Pair = tuple[int, int]
"""What may be written for `Bits`."""


class Bits(NamedTuple):
    """Bit-widths of a layer's weight and of its input; 32 is float."""

    weight: int
    activation: int


FOR_EXAMPLE = "Write, for example, bits={'stem*': (8, 8), '*': (4, 4)}."
FOR_ALL_OTHERS = "Add one for all others, as the last: '*': (4, 4)."
"""Advice; a command line has its own."""

SUPPORTED_BITS = (*range(2, 9), FLOAT_BITS)


def parse_bits(bits: Any) -> Bits:
    """Check a (weight, activation) pair, each 2 to 8, or 32 for float.

    Raises:
        ArgumentError: anything else.

    Examples:
        >>> parse_bits((4, 8))
        Bits(weight=4, activation=8)
    """
    valid = isinstance(bits, (tuple, list)) and len(bits) == 2
    if not valid or not all(_is_width(width) for width in bits):
        raise ArgumentError(
            f"bits={bits!r} is not a (weight, activation) pair of bit-widths. Each is a whole "
            "number from 2 to 8, or 32 for float. Write, for example, bits=(4, 4) or bits=(2, 32)."
        )
    return Bits(int(bits[0]), int(bits[1]))


def parse_width(width: Any, name: str) -> int:
    """Check one bit-width, the argument `name`.

    Raises:
        ArgumentError: it is not from 2 to 8, or 32 for float.
    """
    if not _is_width(width):
        raise ArgumentError(
            f"{name}={width!r} is not a bit-width for weights and activations alike: a whole "
            f"number from 2 to 8, or 32 for float. Write {name}=8."
        )
    return int(width)


def _is_width(width: Any) -> bool:
    return is_whole(width) and width in SUPPORTED_BITS


def resolve_bits(bits: Any, layers: Collection[str]) -> dict[str, Bits]:
    """The (weight, activation) pair of each of `layers`.

    Args:
        bits: One pair for all, or a mapping from patterns of layer names (`fnmatch`: *, ?, [abc])
            to pairs, of which the first that matches a layer is its own; a layer's whole name
            stands for this layer alone.
        layers: Names of the convolutions and linear layers.

    Raises:
        ArgumentError: a pair that is none, a pattern that no layer has or that others leave none,
            or a layer that no pattern matches.

    Examples:
        >>> resolve_bits({"stem": (8, 8), "*": (2, 2)}, ["stem", "body.0"])["body.0"]
        Bits(weight=2, activation=2)
    """
    if not isinstance(bits, Mapping):
        return dict.fromkeys(layers, parse_bits(bits))
    pairs = {pattern: parse_bits(pair) for pattern, pair in bits.items()}
    resolved: dict[str, Bits] = {}
    for pattern, pair in pairs.items():
        matched = _matching(pattern, layers)
        if not matched:
            raise ArgumentError(
                f"bits has an entry for {pattern!r}, and no layer has such a name. The layers are: "
                f"{', '.join(layers) or 'none'}. {FOR_EXAMPLE}"
            )
        new = [name for name in matched if name not in resolved]
        if not new and len(matched) < len(layers):
            raise ArgumentError(
                f"bits has an entry for {pattern!r}, and entries before it match all its layers "
                f"({', '.join(matched)}). Put it before them, or leave it out."
            )
        resolved |= dict.fromkeys(new, pair)
    if missing := [name for name in layers if name not in resolved]:
        raise ArgumentError(f"bits has no entry for {', '.join(missing)}. {FOR_ALL_OTHERS}")
    return {name: resolved[name] for name in layers}


def _matching(pattern: Any, layers: Collection[str]) -> list[str]:
    """The layer of this name, else those that the pattern matches."""
    if not isinstance(pattern, str) or pattern in layers:
        return [pattern] if pattern in layers else []
    return [name for name in layers if fnmatchcase(name, pattern)]
