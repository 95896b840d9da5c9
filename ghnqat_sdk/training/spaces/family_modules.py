"""Blocks that hand-made networks add to those of `blocks`: gates, branches, dense and scaled skips.

Each description (`build`, `trace`, as in `blocks`) stands below the module that it builds.

Example:
    >>> from ghnqat_sdk.training.spaces.blocks import Style, unit
    >>> style = Style("batch", "relu", bias=False)
    >>> branches = (Seq(unit(16, 24, style, 1)), Seq(unit(16, 48, style, 3)))
    >>> Concat(branches).trace(Flow(16, 8, 8), Cost())
    Flow(channels=72, height=8, width=8, depth=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ghnqat_sdk.training.spaces.blocks import Seq, Spec
from ghnqat_sdk.training.spaces.cost import Cost, Flow


class GatedLayer(nn.Module):
    """``gate(x) * x``: squeeze and excitation (Hu et al. 2018), whose gate is (N, C, 1, 1)."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)"""
        return self.gate(x) * x


class Gated(NamedTuple):
    """`GatedLayer`."""

    gate: Seq

    def build(self) -> nn.Module:
        return GatedLayer(self.gate.build())

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return flow._replace(depth=self.gate.trace(flow, cost).depth)


class Branches(nn.Module):
    """Several modules on the same input, their outputs summed or concatenated."""

    def __init__(self, branches: Sequence[nn.Module], concatenates: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.concatenates = concatenates

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h', w')"""
        outputs = [branch(x) for branch in self.branches]
        if self.concatenates:
            return torch.cat(outputs, 1)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total


def join(flows: Sequence[Flow], channels: int) -> Flow:
    """Behind the deepest of the branches that end in `flows`."""
    return flows[0]._replace(channels=channels, depth=max(flow.depth for flow in flows))


class Sum(NamedTuple):
    """`Branches` with outputs of one shape, summed."""

    branches: tuple[Spec, ...]

    def build(self) -> nn.Module:
        return Branches([branch.build() for branch in self.branches], concatenates=False)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        flows = [branch.trace(flow, cost) for branch in self.branches]
        return join(flows, flows[0].channels)


class Concat(NamedTuple):
    """`Branches` whose channels are concatenated."""

    branches: tuple[Spec, ...]

    def build(self) -> nn.Module:
        return Branches([branch.build() for branch in self.branches], concatenates=True)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        flows = [branch.trace(flow, cost) for branch in self.branches]
        return join(flows, sum(end.channels for end in flows))


class HalfBlock(nn.Module):
    """Half of the channels pass, the others go through `body` (ShuffleNetV2, Ma et al. 2018)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)"""
        passing, worked_on = x.chunk(2, dim=1)
        return torch.cat((passing, self.body(worked_on)), dim=1)


class Half(NamedTuple):
    """`HalfBlock`."""

    body: Seq

    def build(self) -> nn.Module:
        return HalfBlock(self.body.build())

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        half = flow._replace(channels=flow.channels // 2)
        return flow._replace(depth=self.body.trace(half, cost).depth)


class PreActivatedBlock(nn.Module):
    """``body(before(x))`` plus x, or plus ``shortcut(before(x))`` (ResNet v2, He et al. 2016)."""

    def __init__(self, before: nn.Module, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.before = before
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h', w')"""
        activated = self.before(x)
        skipped = x if self.shortcut is None else self.shortcut(activated)
        return self.body(activated) + skipped


class PreActivated(NamedTuple):
    """`PreActivatedBlock`; an empty `shortcut` is the input itself."""

    before: Seq
    body: Seq
    shortcut: Seq

    def build(self) -> nn.Module:
        shortcut = self.shortcut.build() if self.shortcut.layers else None
        return PreActivatedBlock(self.before.build(), self.body.build(), shortcut)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        flow = self.before.trace(flow, cost)
        self.shortcut.trace(flow, cost)
        return self.body.trace(flow, cost)


class DenseBlock(nn.Module):
    """Each layer reads the input and all earlier layers' outputs (DenseNet, Huang et al. 2017)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C + growth * layers, h, w)"""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Dense(NamedTuple):
    """`DenseBlock`."""

    layers: tuple[Seq, ...]

    def build(self) -> nn.Module:
        return DenseBlock([layer.build() for layer in self.layers])

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        for layer in self.layers:
            new = layer.trace(flow, cost)
            flow = new._replace(channels=flow.channels + new.channels)
        return flow


class ScaledResidualBlock(nn.Module):
    """``x + scale * body(x)`` with one scale a channel (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body = body
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, h, w)"""
        return self.layer_scale * self.body(x) + x


class ScaledResidual(NamedTuple):
    """`ScaledResidualBlock`."""

    body: Seq
    channels: int

    def build(self) -> nn.Module:
        return ScaledResidualBlock(self.body.build(), self.channels)

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        cost.parameters += self.channels
        return self.body.trace(flow, cost)
