"""The running average of the weights, which is what validation and users get."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork


def averaging(model: GraphHypernetwork, decay: float) -> AveragedModel:
    """A copy of `model` whose `update_parameters` follows its weights."""
    return AveragedModel(model, multi_avg_fn=running_average(decay))


def running_average(decay: float) -> Callable[..., None]:
    """For `AveragedModel`: exponential, with a short memory while little has been averaged."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, 1 - kept)

    return update
