"""Which modules of a model can be fake-quantized, and a start of theirs at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ghnqat_sdk.copying import copy_module
from ghnqat_sdk.graph.ops import op_of


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that run a quantized op and are called for it, by name.

    Those whose `forward` was replaced on the object are left out: no class decides what they run.
    """
    found: dict[str, nn.Module] = {}
    hidden: set[int] = set()
    for name, module in model.named_modules():
        op = op_of(module)
        if op is not None and op.opaque:
            hidden.update(id(inner) for inner in module.modules())
        if op is not None and op.quantized and "forward" not in vars(module):
            found[name] = module
    return {name: module for name, module in found.items() if id(module) not in hidden}


@torch.no_grad()
def he_start(model: nn.Module, seed: int) -> nn.Module:
    """A copy with convolutions and linear layers after He et al. (2015), with zero biases; the rest
    is the model's own.

    The global random numbers stay as they are.
    """
    start = copy_module(model)
    generator = torch.Generator("cpu").manual_seed(seed)
    layers: list[Any] = list(quantizable_layers(start).values())
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return start
