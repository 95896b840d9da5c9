"""What the layers of a network that are quantized cost for one image, and how long all of it
takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghnqat_sdk.bits import Pair
from ghnqat_sdk.graph.ops import op_of

_RUNS = 9  # of a latency, or more, until they took
_MILLISECONDS = 200


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
        layers: Quantizable layers by name, fake-quantized or in float.
        rows: Images in the batch that they run on.
    """
    macs: dict[str, int] = {}
    costs: dict[str, LayerCost] = {}

    def count(name: str) -> Any:
        def hook(layer: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            macs[name] = macs.get(name, 0) + _macs(layer, x, output)
            costs[name] = LayerCost(layer.weight.numel(), macs[name] // rows)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(count(name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield costs


def _macs(layer: Any, x: Tensor, output: Tensor) -> int:
    """Multiply-accumulates of one call."""
    op = op_of(layer)
    assert op is not None
    assert op.macs is not None
    return op.macs(tuple(x.shape), tuple(layer.weight.shape), tuple(output.shape))


@torch.inference_mode()
def latency_ms(model: nn.Module, image: Tensor) -> float:
    """Median milliseconds of `model`, in evaluation mode, on as many threads as torch has."""
    model(image)  # the first run allocates
    taken: list[float] = []
    while len(taken) < _RUNS or sum(taken) < _MILLISECONDS:
        started = time.perf_counter()
        model(image)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)
