"""An encoder, a decoder, rules, an optimizer, a schedule and a space as users write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from toys import Toy, Toys

from ghnqat_sdk.graph.batch import GraphBatch
from ghnqat_sdk.hypernetwork.decoder import Decoder
from ghnqat_sdk.hypernetwork.encoders import Encoder, NodeEmbedding
from ghnqat_sdk.hypernetwork.tiles import Request
from ghnqat_sdk.quantization.functional import fake_quantize
from ghnqat_sdk.quantization.ranges import RangeRule, min_max_range
from ghnqat_sdk.quantization.roundings import RoundingRule


class Bag(Encoder):
    """Every node on its own."""

    def __init__(self, vocabulary: int, s_max: int, width: int = 16) -> None:
        super().__init__(width)
        self.embedding = NodeEmbedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: GraphBatch) -> Tensor:
        return self.norm(self.embedding(batch))


class Constant(Decoder):
    """One number for each tensor, which a node's embedding says."""

    def __init__(self, width: int, num_classes: int, size: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.number = nn.Linear(width, 1)

    def forward(
        self,
        nodes: Tensor,
        depths: Tensor,
        requests: Sequence[Request],
        *,
        channels_last: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> list[Tensor]:
        numbers = self.size * self.number(nodes).flatten()
        return [numbers[request.row].expand(request.cut.shape) for request in requests]


class Widened(RangeRule):
    """Somewhat more than all values."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def of(self, x: Tensor, kind: str, bits: int) -> tuple[Tensor, Tensor]:
        low, high = min_max_range(x)
        return self.factor * low, self.factor * high


class Shifted(RoundingRule):
    """To the nearest level of a range that is moved by half a step."""

    def quantize(self, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
        half = (high - low) / 2 ** (bits + 1)
        return fake_quantize(x - half, low, high, bits) + half


class SlowedSGD(torch.optim.SGD):
    """SGD at a share of the rate."""

    def __init__(self, groups: object, lr: float, slower: float) -> None:
        super().__init__(groups, lr=lr, momentum=0.5)
        self.slower = slower

    def step(self, closure: object = None) -> None:
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] /= self.slower
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


def stairs(length: int) -> Callable[[int], float]:
    """Half the rate after each `length` steps."""
    return lambda step: 0.5 ** (step // length)


class FewToys(Toys):
    """The first networks alone."""

    def __init__(self, split: str, count: int) -> None:
        super().__init__(split)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Toy:
        return super().__getitem__(index)


class Warming(torch.optim.SGD):
    """Steps that grow, as numbers in its groups say."""

    def __init__(self, groups: list[dict[str, object]], lr: float) -> None:
        super().__init__(groups, lr=lr)
        for group in self.param_groups:
            group.setdefault("steps", 0)

    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            group["lr"] *= group["steps"]
        super().step(closure)


class Activated(Toys):
    """Toys with an activation that is chosen."""

    def __init__(self, split: str, activation: str) -> None:
        super().__init__(split)
        self.activation = activation

    def __getitem__(self, index: int) -> Toy:
        return ActivatedToy(self.split, index, self.activation)


@dataclass(frozen=True)
class ActivatedToy(Toy):
    activation: str

    def build(self, num_classes: int = 10) -> nn.Module:
        model = super().build(num_classes)
        for block in model.blocks:
            block[2] = getattr(nn, self.activation)()
        return model
