"""Models that are not traced, and what to pass instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ghnqat_sdk.advice import require_module
from ghnqat_sdk.errors import GhnqatError, TraceError

QUANTIZERS = ("input_quantizer", "weight_quantizer")
"""Modules of a fake-quantized layer."""
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def refuse_untraceable(model: Any) -> None:
    """Raise for what has no graph of its own.

    Raises:
        ArgumentError: it is no nn.Module.
        TraceError: it hides, wraps or simulates a network, or has parameters without a shape.
    """
    require_module(model, "trace(torchvision.models.resnet18())")
    refuse_hidden(model)
    refuse_wrapped(model)
    if any(_simulates(module) for module in model.modules()):
        raise TraceError(
            f"This {type(model).__name__} is fake-quantized, and its operations are those of a "
            "simulation. Pass the float model: to_float(qmodel)"
        )
    if shapeless := why_shapeless(model):
        raise TraceError(shapeless)


def refuse_hidden(model: nn.Module) -> None:
    """Raise for a module of torch.jit that has parameters.

    Raises:
        TraceError: the message names it.
    """
    for name, module in model.named_modules():
        hidden = isinstance(module, torch.jit.ScriptModule)
        if hidden and (not name or next(module.parameters(), None) is not None):
            raise TraceError(
                f"torch.jit modules hide their operations, and {name or 'the model'!r} is one. "
                "Pass the nn.Module that was scripted or traced."
            )


def refuse_wrapped(model: nn.Module, error: type[GhnqatError] = TraceError) -> None:
    """Raise for a module that runs another one as its own, whose parts have other names inside.

    Raises:
        GhnqatError: `error`; the message says which to pass.
    """
    if hasattr(model, "_orig_mod"):
        raise error("This is a compiled module. Pass the module that was compiled: model._orig_mod")
    if isinstance(model, _WRAPPERS):
        raise error(f"{type(model).__name__} runs a module of its own. Pass that: model.module")


def _simulates(module: nn.Module) -> bool:
    """Whether it is a fake-quantized layer."""
    return "quantization" in vars(module) and module._modules.keys() >= {*QUANTIZERS}


def why_shapeless(model: nn.Module) -> str | None:
    """What to say of a model with a lazy module that has not run yet; None for others."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            return (
                f"{name!r} of a lazy module has no shape yet. Run the model once on a batch "
                f"before: model(images)"
            )
    return None
