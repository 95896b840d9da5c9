"""Single layers that hand-made networks add to those of `blocks`.

Each description (`build`, `trace`, as in `blocks`) stands below the module that it builds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ghnqat_sdk.training.spaces.cost import Cost, Flow

# ---------------------------------------------------------------- without parameters


class ChannelShuffle(nn.Module):
    """Interleaves the two halves of the channels (ShuffleNet, Zhang et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)"""
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width)
        return x.transpose(1, 2).contiguous().view(batch, channels, height, width)


class Permute(nn.Module):
    """Another order of the dimensions."""

    def __init__(self, order: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, h, w, C), or back."""
        return x.permute(self.order)


class SpatialMean(nn.Module):
    """The mean over all positions, as MNASNet and ShuffleNet write their pooling."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C)"""
        return x.mean([2, 3])


STATELESS: dict[str, Callable[[], nn.Module]] = {
    "shuffle": ChannelShuffle,
    "channels-last": lambda: Permute((0, 2, 3, 1)),
    "channels-first": lambda: Permute((0, 3, 1, 2)),
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
}


class Stateless(NamedTuple):
    """A layer of `STATELESS`, which leaves the number of channels and positions as it is."""

    kind: str

    def build(self) -> nn.Module:
        return STATELESS[self.kind]()

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return flow


class Mean(NamedTuple):
    """`SpatialMean`."""

    def build(self) -> nn.Module:
        return SpatialMean()

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Flow(flow.channels, 1, 1, flow.depth)


class UnpaddedPool(NamedTuple):
    """Max-pooling of 3x3 with stride 2, windows that reach over the edge included."""

    def build(self) -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Flow(flow.channels, flow.height // 2, flow.width // 2, flow.depth)


class AdaptivePool(NamedTuple):
    """Average pooling to `side` x `side` positions; fewer are repeated, as in VGG."""

    side: int

    def build(self) -> nn.Module:
        return nn.AdaptiveAvgPool2d(self.side)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Flow(flow.channels, self.side, self.side, flow.depth)


# ---------------------------------------------------------------- single layers


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)"""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNorm(NamedTuple):
    """Over the channels, which come first or last."""

    channels: int
    last: bool

    def build(self) -> nn.Module:
        return (nn.LayerNorm if self.last else LayerNorm2d)(self.channels, eps=1e-6)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cost.parameters += 2 * self.channels
        return flow


class PositionLinear(NamedTuple):
    """A linear layer at each position, channels last."""

    cin: int
    cout: int

    def build(self) -> nn.Module:
        return nn.Linear(self.cin, self.cout)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cost.macs += self.cin * self.cout * flow.height * flow.width
        cost.parameters += (self.cin + 1) * self.cout
        return Flow(self.cout, flow.height, flow.width, flow.depth + 1)


class UnpaddedConv(NamedTuple):
    """A convolution without padding; of patches side by side where kernel and stride agree."""

    cin: int
    cout: int
    kernel: int
    stride: int
    bias: bool = True

    def build(self) -> nn.Module:
        return nn.Conv2d(self.cin, self.cout, self.kernel, self.stride, bias=self.bias)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        height = (flow.height - self.kernel) // self.stride + 1
        width = (flow.width - self.kernel) // self.stride + 1
        weights = self.cin * self.cout * self.kernel**2
        cost.macs += weights * height * width
        cost.parameters += weights + self.cout * self.bias
        return Flow(self.cout, height, width, flow.depth + 1)
