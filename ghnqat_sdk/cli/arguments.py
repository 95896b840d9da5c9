"""Types of arguments: each turns text into a value, or says what to write instead. No disk and no
torch is touched."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from dataclasses import dataclass

from ghnqat_sdk.bits import SUPPORTED_BITS, Bits, parse_bits
from ghnqat_sdk.files import is_nameable
from ghnqat_sdk.training.folder import recipe_names

MOST_INPUT_VALUES = 100_000_000
"""In one example input: beyond it, a model cannot be run on most machines."""

MOST_IMAGES = 1_000_000
"""Of a data folder, that one command may read."""

_IMPORTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_OF_TORCHVISION = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DEVICE = re.compile(r"(cpu|mps|cuda(:\d{1,3})?)", re.ASCII)

SPACES = {
    "deepnets": ("id", "deep", "wide", "bn-free", "val", "train", "deep-val", "deep-train"),
    "families": ("test", "val", "train"),
}
"""Spaces of architectures and their splits, the one that is evaluated by default first."""


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most:
            raise ArgumentTypeError(
                f"{_shown(text)} is wrong here. Write a whole number from {self.least} to "
                f"{self.most}"
            )
        return value


@dataclass(frozen=True)
class Real:
    """A number from `least` to `most`."""

    least: float
    most: float

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:
            raise ArgumentTypeError(
                f"{_shown(text)} is wrong here. Write a number from {self.least:g} to {self.most:g}"
            )
        return value


def bits_pair(text: str) -> Bits:
    """W,A: the bits of weights and activations."""
    try:
        return parse_bits([int(part) for part in text.split(",")])
    except ValueError:  # an ArgumentError is one
        raise ArgumentTypeError(
            f"{_shown(text)} is not WEIGHT,ACTIVATION, each from 2 to 8, or 32 for float. Write, "
            "for example, 4,4"
        ) from None


def bits_by_layer(text: str) -> Bits | dict[str, Bits]:
    """W,A for all layers, or PATTERN=W,A;PATTERN=W,A by their names, of which the first that
    matches counts."""
    if "=" not in text:
        return bits_pair(text)
    entries = [entry.rpartition("=") for entry in text.split(";")]
    patterns = [pattern.strip() for pattern, _, _ in entries]
    if not all(patterns) or len(set(patterns)) < len(patterns):
        raise ArgumentTypeError(
            f"{_shown(text)} is not PATTERN=W,A;PATTERN=W,A with each pattern once. Write, for "
            "example, 'stem*=8,8;*=4,4'"
        )
    return {
        pattern: bits_pair(pair) for pattern, (_, _, pair) in zip(patterns, entries, strict=True)
    }


def bit_width(text: str) -> int:
    """One bit-width for weights and activations alike."""
    if text not in map(str, SUPPORTED_BITS):
        raise ArgumentTypeError(
            f"{_shown(text)} is not from 2 to 8, or 32 for float. Write, for example, 8"
        )
    return int(text)


def shape(text: str) -> tuple[int, ...]:
    """The shape of an example input."""
    parts = text.split(",")
    sizes = tuple(int(part) for part in parts if part.strip().isdecimal() and len(part) < 12)
    if len(sizes) < len(parts) or not 1 <= math.prod(sizes) <= MOST_INPUT_VALUES or len(sizes) > 5:
        raise ArgumentTypeError(
            f"{_shown(text)} is no shape of at most {MOST_INPUT_VALUES} numbers. Write, for "
            "example, 2,3,32,32"
        )
    return sizes


def device(text: str) -> str:
    """A device that torch may have; whether this machine has it is asked later."""
    if not _DEVICE.fullmatch(text):
        raise ArgumentTypeError(f"{_shown(text)} is no device. Write cpu, cuda, cuda:1 or mps")
    return text


def model_name(text: str) -> str:
    """MODULE:CALLABLE, SPACE/SPLIT/INDEX, or what a torchvision model may be called."""
    if ":" in text:
        if not _IMPORTED.fullmatch(text):
            raise ArgumentTypeError(
                f"{_shown(text)} is not MODULE:CALLABLE. Write, for example, "
                "my_models:make_resnet20"
            )
    elif "/" in text or "\\" in text:
        _check_architecture(text)
    elif not _OF_TORCHVISION.fullmatch(text):
        raise ArgumentTypeError(
            f"{_shown(text)} is no model. Write a torchvision model (resnet18), MODULE:CALLABLE "
            "for your own, or an architecture (deepnets/id/3)"
        )
    return text


def _check_architecture(text: str) -> None:
    space, split, index = (*text.split("/"), "", "", "")[:3]
    if text.count("/") != 2 or not (index.isascii() and index.isdecimal() and len(index) < 10):
        raise ArgumentTypeError(
            f"{_shown(text)} is not SPACE/SPLIT/INDEX. Write, for example, deepnets/id/3 or "
            "families/test/7; a model of your own is MODULE:CALLABLE"
        )
    if split not in SPACES.get(space, ()):
        known = ", ".join(f"{name}/{one}" for name, splits in SPACES.items() for one in splits)
        raise ArgumentTypeError(f"There is no {space}/{split}. Write one of {known}, and an index")


def hypernetwork_name(text: str) -> str:
    """'default', a folder or a Hub repo; whether it is there is asked later."""
    if not text or not is_nameable(text):
        raise ArgumentTypeError(
            f"{_shown(text)} is no hypernetwork. Write default, a folder, or a Hub repo as "
            "owner/name"
        )
    return text


def revision(text: str) -> str:
    """A branch, tag or commit of a Hub repo."""
    if not text.strip() or ".." in text or not is_nameable(text):
        raise ArgumentTypeError(
            f"{_shown(text)} is no revision. Write a branch, a tag or a commit, for example main"
        )
    return text


def assignment(text: str) -> str:
    """FIELD=VALUE; which fields there are is known later."""
    if not re.match(r"[^=\s]+=", text):
        raise ArgumentTypeError(
            f"{_shown(text)} is not FIELD=VALUE. Write, for example, sampling.meta_batch=4"
        )
    return text


def recipe_name(text: str) -> str:
    """One of the recipes that ship with the package."""
    names = recipe_names()
    if text not in names:
        raise ArgumentTypeError(f"{_shown(text)} is unknown. Write one of {', '.join(names)}")
    return text


def _shown(text: str) -> str:
    """What was written, in quotes and short."""
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:76]}...'"
