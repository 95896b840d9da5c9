"""Several processes that train one hypernetwork, each with architectures of its own (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process's rank among `size` processes.

    Networks of different shapes use different parts of the decoder, so gradients can be missing in some processes:
    one flat buffer with zeros for them is averaged in one all-reduce.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """Join the group that torchrun describes in the environment; alone without one. gloo works on any device."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in gradients]).cpu()
        dist.all_reduce(flat)
        flat /= self.size
        parts: Sequence[Tensor] = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device)

    def take_from_first(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every parameter by that of process 0."""
        if self.size == 1:
            return
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
