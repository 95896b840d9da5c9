"""Whether images are normalized, as those were that predicted models are made for."""

from __future__ import annotations

import torch
from torch import Tensor

from ghnqat_sdk.calls import Call

_MOST_MEAN = 1.0
_DEVIATIONS = (0.33, 3.0)


def images_of(call: Call) -> Tensor | None:
    """The first images (N, C, H, W) with values among the inputs, if there are any."""
    tensors = (tensor for tensor in call.tensors() if tensor.ndim == 4 and tensor.numel())
    images = next(tensors, None)
    return None if images is None or images.is_meta else images


def not_normalized(images: Tensor) -> str:
    """A sentence about values far from mean 0 and deviation 1, with how to write them; else "".

    Examples:
        >>> not_normalized(torch.tensor([[[[0.0, 250.0]]]]))[:51]
        "The images' values have mean 125 and deviation 125;"
    """
    numbers = torch.std_mean(images.float(), correction=0)
    deviation, mean = (number.item() for number in numbers)
    if abs(mean) <= _MOST_MEAN and _DEVIATIONS[0] <= deviation <= _DEVIATIONS[1]:
        return ""
    if deviation == 0:
        return f"The images hold one value alone, {mean:.6g}. Check how they are read."
    return (
        f"The images' values have mean {mean:.3g} and deviation {deviation:.3g}; expected about 0 "
        f"and 1. Normalize all batches alike, as ImageSet.batches does, or write (images - "
        f"{mean:.6g}) / {deviation:.6g}."
    )
