"""The gradients of a step in one buffer, which is averaged over processes and clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ghnqat_sdk.training.distributed import Processes


class FlatGradients:
    """The gradients of all parameters as one buffer, of which each `grad` is a part.

    Networks of different shapes use different parts of the decoder, so gradients can be missing in
    some processes: their parts stay zero, and the buffer is averaged in one all-reduce.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        device = parameters[0].device
        self.flat = torch.zeros(sum(sizes), device=device)
        for parameter, part in zip(parameters, self.flat.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def zero(self) -> None:
        """Forget what was added."""
        self.flat.zero_()

    def mean_over(self, processes: Processes) -> None:
        """Replace every gradient by its mean over all processes."""
        if processes.size > 1:
            total = processes.total(self.flat.cpu())
            self.flat.copy_(total.div_(processes.size))

    def clip(self, limit: float) -> float:
        """Scale all gradients to a norm of at most `limit`; returns the norm before."""
        norm = self.flat.norm().item()
        if norm > limit:
            self.flat.mul_(limit / norm)
        return norm
