"""Where tensors are made that are told no device, whatever the program around has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

CPU = torch.device("cpu")


@contextmanager
def on_cpu_by_default() -> Iterator[None]:
    """The CPU is the default device inside."""
    with _default(CPU):
        yield


@contextmanager
def at_home(model: nn.Module) -> Iterator[None]:
    """Inside, the default device is one that a run of `model` can do with: the CPU or the model's
    own stays, another makes way for the model's own."""
    tensors = chain(model.parameters(), model.buffers())
    home = next((tensor.device for tensor in tensors), CPU)
    default = torch.get_default_device()
    with _default(default if default.type in (CPU.type, home.type) else home):
        yield


@contextmanager
def _default(device: torch.device) -> Iterator[None]:
    if torch.get_default_device() == device:  # a context makes every call of torch slower
        yield
        return
    with device:
        yield
