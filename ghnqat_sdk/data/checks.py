"""What images and labels must be, and what is said where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghnqat_sdk.errors import ArgumentError


def check_fits(
    images: Tensor, labels: Tensor, classes: Sequence[str], mean: Sequence[float], std: Any
) -> None:
    """Refuse parts of an image set that do not belong together.

    Raises:
        ArgumentError: other shapes, images that are no bytes, labels of no class, or a class twice.
    """
    shape = tuple(images.shape)
    counts = (len(labels), len(mean), len(std))
    if counts != (*shape[:2], shape[1]):
        raise ArgumentError(
            f"Images {shape} do not fit {counts[0]} labels, {counts[1]} means and {counts[2]} "
            f"deviations. Write ImageSet(images, labels, classes, mean=…, std=…)."
        )
    if images.dtype != torch.uint8:
        raise ArgumentError(
            f"Images are {images.dtype}; expected uint8. Write ImageSet.of(images, labels), which "
            "reads other types."
        )
    if len(set(classes)) < len(classes):
        raise ArgumentError(f"classes={tuple(classes)!r} names one twice. Give each its own name.")
    on_cpu = labels.device.type == "cpu"  # elsewhere each batch would wait to be looked at
    if on_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ArgumentError(
            f"Labels are from {int(labels.min())} to {int(labels.max())}, for {len(classes)} "
            f"classes. Write as many classes, in the order of the labels."
        )


def as_tensor(what: str, values: Any) -> Tensor:
    """What `torch.as_tensor` makes of values.

    Raises:
        ArgumentError: it makes nothing of them, or numbers that are complex.
    """
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(
            f"{what} cannot be read as a tensor of numbers ({reason}). Write "
            "torch.tensor(values), or numpy.ascontiguousarray(array) for an array."
        ) from error
    if tensor.is_complex():
        raise ArgumentError(f"{what} are complex numbers; expected real ones. Write values.abs().")
    return tensor
