"""What makes one network another one, as far as its accuracy with predicted parameters goes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghnqat_sdk.calls import tensors_in
from ghnqat_sdk.files import digest
from ghnqat_sdk.quantization.state import evaluating

_DIGITS = 16


@torch.no_grad()
def network_digest(model: nn.Module, images: Tensor) -> str:
    """16 hexadecimal digits of what a network computes with parameters of any values: each
    operation of a run on `images` (N, C, H, W), its arguments, the values of buffers and other
    constants, and the settings that modules print, some of which count in training alone."""
    calls = _Calls(model)
    with evaluating(model), calls:
        model(images)
    settings = _told_anywhere(model)
    return hashlib.sha256("\n".join([*calls.lines, settings]).encode()).hexdigest()[:_DIGITS]


def values_digest(model: nn.Module, names: Collection[str]) -> str:
    """16 hexadecimal digits of the values of these parameters."""
    tensors = {name: tensor for name, tensor in model.named_parameters() if name in names}
    return digest({name: t.detach().cpu().contiguous() for name, t in tensors.items()})[:_DIGITS]


class _Calls(TorchDispatchMode):
    """Writes down the operations that run inside.

    Attributes:
        lines: One for each. A tensor is told by the name of the parameter or by the number of the
            operation that it comes from, else by its values.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._sources = {_memory(p): name for name, p in model.named_parameters()}
        self._alive: list[Any] = []  # memory that is freed would be that of another tensor soon

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.lines.append(f"{func} {self._told(args)} {self._told(kwargs or {})}")
        output = func(*args, **(kwargs or {}))
        self._alive.append(output)
        for tensor in tensors_in(output):
            if _memory(tensor) not in self._sources:
                self._sources[_memory(tensor)] = f"#{len(self.lines)}"
        return output

    def _told(self, argument: Any) -> str:
        if isinstance(argument, Tensor):
            source = self._sources.get(_memory(argument)) or digest({"": argument.cpu()})
            return f"{source} {argument.dtype} {tuple(argument.shape)} {argument.stride()}"
        if isinstance(argument, (tuple, list)):
            return f"[{', '.join(map(self._told, argument))}]"
        if isinstance(argument, Mapping):
            return self._told([*argument.items()])
        return _told_anywhere(argument)


def _told_anywhere(value: Any) -> str:
    """Its `repr` without where in memory it is."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
