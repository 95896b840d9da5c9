"""Several processes that train one hypernetwork, each with architectures of its own (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process's rank among `size` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Processes:
        """Join the group that torchrun describes in the environment; alone without one.

        gloo works on any device.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not dist.is_initialized():
            _join_group()
        return cls(int(os.environ.get("RANK", "0")), size)

    def take_from_first(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every parameter by that of process 0."""
        if self.size == 1:
            return
        for parameter in parameters:
            dist.broadcast(parameter.detach(), src=0)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes of tensors (CPU) of one shape."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()


def _join_group() -> None:
    """By a store with a name space for each of torchrun's restarts.

    Its static rendezvous keeps one store for all of them, where processes would find the addresses
    of those that died, and wait for them.
    """
    store, rank, size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"attempt/{attempt}", store)
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size)
