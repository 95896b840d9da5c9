"""What a model gives for a batch, and how far that is from what another gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.advice import run_or_explain
from ghnqat_sdk.calls import Call, tensors_in
from ghnqat_sdk.errors import ArgumentError


def run_on(qmodel: nn.Module, batch: Any) -> Tensor:
    """All outputs of one run as one vector."""
    outputs = [tensor.flatten().double() for tensor in outputs_on(qmodel, batch)]
    return torch.cat(outputs) if outputs else torch.empty(0, dtype=torch.float64, device="cpu")


def finite_run_on(qmodel: nn.Module, batch: Any) -> Tensor:
    """As `run_on`, of a batch that makes sense.

    Raises:
        ArgumentError: the model gives nothing, or NaN or infinity.
    """
    output = run_on(qmodel, batch)
    if not output.numel() or not output.isfinite().all():
        what = "is not finite" if output.numel() else "holds no value"
        raise ArgumentError(
            f"The model's output on this batch {what}. Check the batch for NaN and infinity, "
            f"normalize it as in training, and pass at least one image."
        )
    return output


def outputs_on(qmodel: nn.Module, batch: Any) -> list[Tensor]:
    """All output tensors of one run on what `Call.of` takes."""
    advice = "Pass a tensor, a tuple of arguments, or a dict of keyword arguments."
    return list(tensors_in(run_or_explain(qmodel, Call.of(batch), "this batch", advice)))


def output_difference(one: Tensor, other: Tensor) -> float:
    """Mean squared difference relative to the mean square of `other`.

    Raises:
        ArgumentError: they differ in size.
    """
    if one.shape != other.shape:
        raise ArgumentError(
            f"Quantization changes how many values the model gives, from {other.numel()} to "
            f"{one.numel()}, so that outputs cannot be compared. Pass a model that gives all of "
            f"its scores, not those alone that are high enough."
        )
    return ((one - other).square().sum() / other.square().sum().clamp(min=1e-30)).item()
