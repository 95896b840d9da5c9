"""What the quantized layers of a network cost for one image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ghnqat_sdk.bits import Pair


@dataclass(frozen=True)
class LayerCost:
    """Size of one layer.

    Attributes:
        weights: Values of its weight.
        macs: Multiply-accumulates for one image.
    """

    weights: int
    macs: int

    def weight_bytes(self, bits: Pair) -> float:
        """Of its weight at these bits."""
        return self.weights * bits[0] / 8

    def bit_operations(self, bits: Pair) -> float:
        """Multiply-accumulates times both bit-widths."""
        return float(self.macs * bits[0] * bits[1])


@contextmanager
def counting_costs(layers: Mapping[str, Any], rows: int) -> Iterator[dict[str, LayerCost]]:
    """Costs of the layers that run inside, by name and in the order in which they first run.

    Args:
        layers: Fake-quantized layers by name.
        rows: Images in the batch that they run on.
    """
    macs: dict[str, int] = {}
    costs: dict[str, LayerCost] = {}

    def count(name: str) -> Any:
        def hook(layer: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            macs[name] = macs.get(name, 0) + type(layer).macs(layer, x, output)
            costs[name] = LayerCost(layer.weight.numel(), macs[name] // rows)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(count(name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield costs
