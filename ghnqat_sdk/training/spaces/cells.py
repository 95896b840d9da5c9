"""Networks of searched cells (Liu et al., "DARTS: Differentiable Architecture Search", 2019).

A cell is a small graph of numbered states: 0 is the output of the cell before the last, 1 that of
the last cell, and 2, 3, ... are its steps, each the sum of one or two operations on earlier states.
Here are the modules, and their descriptions as in `blocks`: each builds its module and counts its
cost. `genotypes` says what a cell consists of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ghnqat_sdk.training.spaces.blocks import Conv, Seq
from ghnqat_sdk.training.spaces.cost import IMAGE, Cost, Flow


class FactorizedReduce(nn.Module):
    """Halves height and width by two 1x1 convolutions, one on even and one on odd pixels."""

    def __init__(self, even: nn.Module, odd: nn.Module) -> None:
        super().__init__()
        self.even = even
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C', h / 2, w / 2), h and w even."""
        return torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1)


class CellStep(nn.Module):
    """Sum of one or two operations, each on an earlier state."""

    def __init__(self, sources: Sequence[int], operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.operations = nn.ModuleList(operations)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """States (N, C, h, w) to one more."""
        pairs = zip(self.sources, self.operations, strict=True)
        first, *others = [operation(states[source]) for source, operation in pairs]
        return first + others[0] if others else first


class Cell(nn.Module):
    """Steps over the outputs of the two cells before; the states `ends` make the output."""

    def __init__(
        self, before: nn.Module, last: nn.Module, steps: Sequence[nn.Module], ends: Sequence[int]
    ) -> None:
        super().__init__()
        self.before = before
        self.last = last
        self.steps = nn.ModuleList(steps)
        self.ends = tuple(ends)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        """(N, C0, h0, w0) and (N, C1, h1, w1) to (N, C len(ends), h, w)"""
        states = [self.before(before), self.last(last)]
        for step in self.steps:
            states.append(step(states))
        ends = [states[end] for end in self.ends]
        return ends[0] if len(ends) == 1 else torch.cat(ends, dim=1)


class CellNet(nn.Module):
    """Stem, cells each reading the outputs of the two before it, head; a `BlockedModule`.

    The first cell reads the output of `stem`, and that of `second_stem` behind it.
    """

    def __init__(
        self, stem: nn.Module, second_stem: nn.Module, cells: Sequence[nn.Module], head: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        self.second_stem = second_stem
        self.cells = nn.ModuleList(cells)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes), H and W multiples of 8."""
        before = self.stem(x)
        last = self.second_stem(before)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last)

    def block_ends(self) -> Sequence[nn.Module]:
        """See `BlockedModule`: the cells, in order of execution."""
        return list(self.cells)


class Halve(NamedTuple):
    """A `FactorizedReduce`, from `cin` to `cout` (an even number) channels."""

    cin: int
    cout: int
    bias: bool

    def build(self) -> nn.Module:
        half = Conv(self.cin, self.cout // 2, (1, 1), (2, 2), 1, 1, self.bias)
        return FactorizedReduce(half.build(), half.build())

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        return Conv(self.cin, self.cout, (1, 1), (2, 2), 1, 1, self.bias).trace(flow, cost)


class StepSpec(NamedTuple):
    """A `CellStep`."""

    sources: tuple[int, ...]
    operations: tuple[Seq, ...]

    def build(self) -> nn.Module:
        return CellStep(self.sources, [operation.build() for operation in self.operations])

    def trace(self, states: Sequence[Flow], cost: Cost) -> Flow:
        pairs = zip(self.sources, self.operations, strict=True)
        terms = [operation.trace(states[source], cost) for source, operation in pairs]
        return max(terms, key=depth_of)


class CellSpec(NamedTuple):
    """A `Cell`."""

    before: Seq
    last: Seq
    steps: tuple[StepSpec, ...]
    ends: tuple[int, ...]

    def build(self) -> nn.Module:
        steps = [step.build() for step in self.steps]
        return Cell(self.before.build(), self.last.build(), steps, self.ends)

    def trace(self, before: Flow, last: Flow, cost: Cost) -> Flow:
        states = [self.before.trace(before, cost), self.last.trace(last, cost)]
        for step in self.steps:
            states.append(step.trace(states, cost))
        ends = [states[end] for end in self.ends]
        return max(ends, key=depth_of)._replace(channels=sum(end.channels for end in ends))


class CellNetSpec(NamedTuple):
    """A `CellNet`."""

    stem: Seq
    second_stem: Seq
    cells: tuple[CellSpec, ...]
    head: Seq

    def build(self) -> nn.Module:
        cells = [cell.build() for cell in self.cells]
        return CellNet(self.stem.build(), self.second_stem.build(), cells, self.head.build())

    def trace(self, flow: Flow, cost: Cost) -> Flow:
        before = self.stem.trace(flow, cost)
        last = self.second_stem.trace(before, cost)
        for cell in self.cells:
            before, last = last, cell.trace(before, last, cost)
        return self.head.trace(last, cost)

    def cost(self) -> Cost:
        """Of one image."""
        cost = Cost()
        cost.depth = self.trace(IMAGE, cost).depth
        return cost


def depth_of(flow: Flow) -> int:
    """Key by which the longest of several paths is chosen."""
    return flow.depth
