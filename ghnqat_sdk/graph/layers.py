"""Which modules of a model can be fake-quantized."""

from __future__ import annotations

from torch import nn

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
