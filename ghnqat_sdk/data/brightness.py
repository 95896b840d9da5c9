"""Brightness: which value is white, and the mean and deviation of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError

_OVERSHOOT = 1.01
"""Resized images may be a little brighter than white."""


def as_bytes(images: Tensor, white: float | None) -> Tensor:
    """`all_as_bytes` of one."""
    return all_as_bytes([images], white)[0]


def all_as_bytes(
    images: Sequence[Tensor], white: float | None, call: str = "ImageSet.of"
) -> list[Tensor]:
    """uint8 as it is unless something else is white; other values from 0 to 255.

    Args:
        images: Of any shapes, whose white is the same.
        white: As given.
        call: What takes another one.

    Raises:
        ArgumentError: values that mean no brightness, or of which it is not known what is white.
    """
    if not images or (white is None and all(x.dtype == torch.uint8 for x in images)):
        return [*images]
    if not all(x.isfinite().all() and x.min() >= 0 for x in images):
        raise ArgumentError(
            "Images hold negative values, NaN or infinity; expected brightness from 0. Pass them "
            "before they are normalized."
        )
    largest = max(x.max().item() for x in images)
    white = _white(largest, call) if white is None else white
    if not isinstance(white, (int, float)) or not _is_white(white, largest):
        raise ArgumentError(
            f"white={white!r} is less than the largest value of the images, {largest:g}, or no "
            f"positive number. Write the value of white, such as white={_least_white(largest)}."
        )
    scale = 255 / white
    return [(x.double() * scale).round().clamp_(max=255).to(torch.uint8) for x in images]


def _is_white(white: float, largest: float) -> bool:
    return 0 < white < math.inf and largest <= white * _OVERSHOOT


def _white(largest: float, call: str) -> float:
    """What is white where the largest value is as given. It must not depend on the images: those
    for training and those for testing have to be read alike."""
    for white in (1, 255, 65535):
        if white / 2 < largest <= white * _OVERSHOOT or largest <= white == 1:
            return white
    raise ArgumentError(
        f"The largest value of the images is {largest:g}, and white may be 1, 255, 65535 or "
        f"something else. Write {call}(…, white={_least_white(largest)}), or another number."
    )


def _least_white(largest: float) -> int:
    """1, 2, 4, …, 128, then the largest of so many bits: 255, 511, …"""
    power = 2 ** math.ceil(math.log2(max(1.0, largest)))
    return power - 1 if power > 255 else power


def statistics_of(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of images (N, C, H, W) uint8, where white is 1.

    The deviation of a channel of one colour is given as 1, so that it can be divided by.
    """
    # How often each of the 256 values occurs says it all, without floats of every pixel.
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)])
    share = counts.double() / max(1, images[:, 0].numel())
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    mean = share @ values
    deviation = (share @ values.square() - mean.square()).clamp(min=0).sqrt()
    deviation[deviation < 1e-4] = 1.0
    return tuple(mean.tolist()), tuple(deviation.tolist())
